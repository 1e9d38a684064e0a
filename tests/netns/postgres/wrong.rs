//! What a role may, and servers that are not what they should be.

use std::os::unix::fs::{MetadataExt as _, chown};

use super::*;

/// All that the role `ballast` is and may, a line each.
const RIGHTS: &str = "\
select string_agg(line, '; ' order by line) from ( \
  select 'member of ' || b.rolname as line from pg_auth_members as m \
    join pg_roles as r on r.oid = m.member join pg_roles as b on b.oid = m.roleid \
    where r.rolname = 'ballast' \
  union all select 'may ' || p.oid::regprocedure from pg_proc as p, aclexplode(p.proacl) as a \
    where a.grantee = 'ballast'::regrole \
  union all select 'sets ' || p.parname || ' ' || a.privilege_type \
    from pg_parameter_acl as p, aclexplode(p.paracl) as a where a.grantee = 'ballast'::regrole \
  union all select 'owns ' || c.oid::regclass from pg_class as c \
    where c.relowner = 'ballast'::regrole and c.relkind = 'r' \
  union all select 'has schema ' || nspname from pg_namespace where nspowner = 'ballast'::regrole \
  union all select format('is %s', row(rolsuper, rolcreatedb, rolcreaterole, rolreplication, \
    rolbypassrls, rolcanlogin)) from pg_roles where rolname = 'ballast') as lines";

/// Makes the role as `ballast pg setup` says it, twice.
fn set_up(site: &Site, host: &str) -> Result<()> {
    let sql = site.obeys(&format!("pg setup -c {}", site.lab().config().display()))?;
    for _ in 0..2 {
        site.lab().query(host, &sql).context("run what `ballast pg setup` prints")?;
    }
    site.lab().query(host, "alter role ballast password 'ballast'").map(drop)
}

#[test]
fn the_role_of_pg_setup_may_do_all_that_is_done() -> Result<()> {
    let site = site("pg-role", "")?;
    let lab = site.lab();
    // All other tests go by the lab's role: it may what this one may, and no more.
    let labs = lab.query("pg-01", RIGHTS)?;
    lab.query("pg-01", "drop owned by ballast cascade; drop role ballast")?;
    set_up(&site, "pg-01")?;
    let ours = lab.query("pg-01", RIGHTS)?;
    ensure!(ours == labs, "`ballast pg setup` makes\n{ours}\nand the lab\n{labs}");
    make_synchronous(&site)?;
    let well = until(&site, "both to answer", |it| {
        it["servers"].as_array().is_some_and(|all| all.iter().all(|it| it["answers"] == true))
            && it["servers"][0]["detail"]["standbys"][0]["sync_state"] == "sync"
            && it["servers"][0]["sync"]["have"] == 1
            && !it["warnings"].to_string().contains("no new connections")
    })?;
    for words in ["lacks", "privilege", "cannot"] {
        ensure!(!well["warnings"].to_string().contains(words), "{well}");
    }
    // Commits go on without the standby, and wait for it again.
    let writer = Writer::start(&site)?;
    site.obeys("pg degrade --force --yes --peer-is-down lb-02")?;
    site.obeys("pg restore")?;
    until(&site, "commits to wait again", |it| {
        it["degraded"].is_null() && it["servers"][0]["sync"]["have"] == 1
    })?;
    // The standby is taken off, promoted, shows that it takes writes, and writes a checkpoint.
    site.obeys("pg switchover --yes --peer-is-down lb-02")?;
    writer.more(50)?;
    ensure!(missing(&site, &writer.end()?)?.is_empty());
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    let begun = Instant::now();
    eventually("the checkpoint", || {
        let log = fs::read_to_string(lab.log(HostName::Pg02, "postgres"))?;
        Ok(log.contains("checkpoint starting: immediate force wait").then_some(()))
    })
    .with_context(|| format!("{:?} after the promotion", begun.elapsed()))?;
    for event in site.events()? {
        let message = event.to_string();
        ensure!(!message.contains("permission denied"), "{message}");
    }
    ensure!(!site.log().contains("permission denied"), "{}", site.log());
    site.finish()
}

/// A lab with databases, and no daemon yet.
fn without_daemon(name: &str) -> Result<Site> {
    Site::with(
        name,
        Options {
            config: Some(default_config() + &postgres_config()),
            postgres: true,
            apps: 0,
            balancers: Balancers::None,
            ballast: Some(xtask::build::ballast()?),
            ..Options::default()
        },
    )
}

/// Why no write passes.
fn problem(site: &Site, words: &str) -> Result<Value> {
    let database = until(site, words, |it| it["problem"].to_string().contains(words))?;
    ensure!(database["writes_to"].is_null() && database["epoch"] == 0, "{database}");
    ensure!(leads_to(site, 5432).is_err(), "no write passes");
    let shown = site.obeys("pg status")?;
    ensure!(shown.contains(words), "{shown}");
    Ok(database)
}

#[test]
fn of_two_primaries_none_is_taken_until_a_person_says_which() -> Result<()> {
    let site = without_daemon("pg-two")?;
    site.lab().query("pg-02", "select pg_promote()")?;
    site.daemon().start()?;
    problem(&site, "2 servers take writes: pg-01, pg-02")?;
    let refused = site.refuses("pg promote --yes --peer-is-down lb-02")?;
    ensure!(refused.contains("name the server"), "{refused}");
    site.obeys("pg promote pg-02 --yes --peer-is-down lb-02")?;
    let database = until(&site, "pg-02 to be the primary", |it| it["writes_to"] == "pg-02")?;
    ensure!(server(&database, "pg-01")["read_only"]["state"] == "barred", "{database}");
    eventually("writes to pass", || Ok(leads_to(&site, 5432).ok()))?;
    for port in [5432, 5433] {
        ensure!(leads_to(&site, port)? == "192.0.2.32", "the other one gets no packet");
    }
    site.finish()
}

#[test]
fn a_standby_of_another_system_is_named_and_gets_nothing() -> Result<()> {
    let site = without_daemon("pg-other")?;
    let lab = site.lab();
    // In place of the standby there is a cluster of its own.
    lab.kill("pg-02")?;
    let data = lab.data_dir().join("pg-02");
    let owner = fs::metadata(&data)?;
    fs::remove_dir_all(&data)?;
    fs::create_dir(&data)?;
    chown(&data, Some(owner.uid()), Some(owner.gid()))?;
    let initdb =
        "cd / && exec \"$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)\"/initdb -A trust -D \"$0\"";
    let path = data.display().to_string();
    let (user, group) = (format!("--reuid={}", owner.uid()), format!("--regid={}", owner.gid()));
    let as_owner = ["setpriv", user.as_str(), group.as_str(), "--clear-groups", "--"];
    site.run(HostName::Pg02, &[&as_owner[..], &["sh", "-c", initdb, path.as_str()]].concat())?;
    lab.start("pg-02")?;
    set_up(&site, "pg-02")?;
    lab.kill("pg-02")?;
    let signal = data.join("standby.signal");
    fs::write(&signal, "")?;
    chown(&signal, Some(owner.uid()), Some(owner.gid()))?;
    lab.start("pg-02")?;
    site.daemon().start()?;
    problem(&site, "pg-02 is a standby of another cluster")?;

    // Who says which one it is has writes go there, and never reads to the other.
    site.obeys("pg promote pg-01 --yes --peer-is-down lb-02")?;
    let database = until(&site, "pg-01 to be the primary", |it| it["writes_to"] == "pg-01")?;
    ensure!(server(&database, "pg-02")["read_only"]["state"] == "barred", "{database}");
    eventually("reads to go to the primary", || Ok(leads_to(&site, 5433).ok()))?;
    ensure!(leads_to(&site, 5433)? == "192.0.2.31");
    let refused = site.refuses("pg switchover --yes --peer-is-down lb-02")?;
    ensure!(refused.contains("another cluster"), "{refused}");
    site.finish()
}
