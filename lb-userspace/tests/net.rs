//! Next hops and floating addresses, with the real kernel: two network namespaces joined by a veth
//! pair. Needs root.

use std::{
    collections::BTreeSet,
    fs::File,
    net::IpAddr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use ballast::{
    net::{self, Mac, NextHop, NextHops},
    vrrp::{HeldAddress, Holder, HolderState, address},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// Long enough for a busy machine: nothing waits for it unless a test fails.
const PATIENCE: Duration = Duration::from_secs(30);

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0xc];

/// Runs `ip` with words, in the host's namespace if no other is named by `-n`.
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output();
    let output = output.expect("run ip, of the package iproute2");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Two hosts on one link: `near` with `192.0.2.1` and `2001:db8::1`, `far` with the same that end in
/// 2, each on an interface `eth0`.
struct Lan {
    near: String,
    far: String,
}

impl Lan {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        let name = format!("bnet-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let lan = Self { near: format!("{name}-near"), far: format!("{name}-far") };
        let Self { near, far } = &lan;
        ip(&format!("netns add {near}"));
        ip(&format!("netns add {far}"));
        ip(&format!("link add eth0 netns {near} type veth peer name eth0 netns {far}"));
        for (host, mac, number) in [(near, OURS, 1), (far, THEIRS, 2)] {
            ip(&format!("-n {host} link set eth0 address {} up", Mac(mac)));
            ip(&format!("-n {host} link set lo up"));
            ip(&format!("-n {host} address add 192.0.2.{number}/24 dev eth0"));
            ip(&format!("-n {host} address add 2001:db8::{number}/64 dev eth0 nodad"));
        }
        lan
    }

    /// Runs `ip` in the namespace of this side.
    fn near(&self, words: &str) -> String {
        ip(&format!("-n {} {words}", self.near))
    }

    /// Runs `ip` in the namespace of the other side.
    fn far(&self, words: &str) -> String {
        ip(&format!("-n {} {words}", self.far))
    }

    /// Writes a setting of the network, in a namespace.
    fn set(host: &str, setting: &str, value: &str) {
        let path = format!("/proc/sys/net/{setting}");
        let value = value.to_owned();
        inside(host, async move { std::fs::write(&path, value).expect(&path) });
    }

    /// Runs a future in the namespace of this side.
    fn run<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        inside(&self.near, future)
    }

    /// The MAC address that the other side believes `address` to have.
    fn believed(&self, address: &str) -> Option<String> {
        let entry = self.far(&format!("neighbour show {address} dev eth0"));
        let mut words = entry.split_whitespace();
        words.find(|word| *word == "lladdr")?;
        words.next().map(Into::into)
    }

    /// Makes the other side believe that `address` is elsewhere.
    fn mislead(&self, address: &str) {
        self.far(&format!("neighbour replace {address} lladdr {} dev eth0 nud stale", Mac(OTHER)));
        assert_eq!(self.believed(address), Some(Mac(OTHER).to_string()));
    }

    /// The lines that `ip` has of `address` on our side.
    fn held(&self, address: &str) -> Vec<String> {
        let all = self.near("-o -details address show dev eth0");
        let word = format!(" {address} ");
        all.lines().filter(|line| line.contains(&word)).map(Into::into).collect()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

/// Runs a future on a thread that has entered the namespace.
fn inside<T: Send>(namespace: &str, future: impl Future<Output = T> + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    let body = || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(future)
    };
    std::thread::scope(|scope| {
        scope.spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Polls until `condition` holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the watched value is as wanted.
async fn until<T: std::fmt::Debug>(
    what: &str,
    receiver: &mut watch::Receiver<T>,
    wanted: impl FnMut(&T) -> bool,
) {
    let seen = timeout(PATIENCE, receiver.wait_for(wanted)).await.is_ok();
    assert!(seen, "{what}: not within {PATIENCE:?}; last: {:?}", *receiver.borrow());
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

struct Watched {
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    next_hops: watch::Receiver<NextHops>,
    ifindex: u32,
}

/// Starts to watch `wanted` from the namespace of this thread.
async fn watch(wanted: &[&str]) -> Watched {
    let (sender, receiver) = watch::channel(wanted.iter().map(|text| address(text)).collect());
    let (next_hops, _task) = net::watch_next_hops(receiver).unwrap();
    let ifindex = net::interface("eth0").await.unwrap().ifindex;
    Watched { wanted: sender, next_hops, ifindex }
}

impl Watched {
    async fn mac_is(&mut self, of: &str, mac: Option<[u8; 6]>) {
        let what = format!("{of} is at {mac:02x?}");
        let same =
            |hop: &NextHop| (hop.ifindex, hop.source_mac, hop.mac) == (self.ifindex, OURS, mac);
        until(&what, &mut self.next_hops, |hops| hops.get(&address(of)).is_some_and(same)).await;
    }

    async fn none(&mut self, of: &str) {
        let what = format!("{of} has no next hop");
        until(&what, &mut self.next_hops, |hops| !hops.contains_key(&address(of))).await;
    }
}

#[test]
fn interface_and_its_addresses() {
    let lan = Lan::new();
    lan.run(async {
        let eth0 = net::interface("eth0").await.unwrap();
        assert_eq!((eth0.name.as_str(), eth0.mac, eth0.up, eth0.mtu), ("eth0", OURS, true, 1500));
        lan.near("link set eth0 mtu 1400");
        lan.far("link set eth0 down");
        // Linux 6.1 takes note of a carrier within a second, newer ones when they are asked.
        let end = Instant::now() + PATIENCE;
        let mut changed = net::interface("eth0").await.unwrap();
        while changed.up && Instant::now() < end {
            sleep(Duration::from_millis(10)).await;
            changed = net::interface("eth0").await.unwrap();
        }
        assert_eq!((changed.ifindex, changed.up, changed.mtu), (eth0.ifindex, false, 1400));
        let addresses = net::addresses("eth0").await.unwrap();
        assert!(addresses.contains(&(address("192.0.2.1"), 24)), "{addresses:?}");
        assert!(addresses.contains(&(address("2001:db8::1"), 64)), "{addresses:?}");
        let missing = net::interface("eth9").await.unwrap_err();
        assert_eq!(missing.to_string(), "interface `eth9` does not exist");
        let loopback = net::interface("lo").await.unwrap_err();
        assert_eq!(loopback.to_string(), "interface `lo` is not an Ethernet interface");
    });
}

#[test]
fn a_neighbour_that_changes_its_mac_is_followed() {
    let lan = Lan::new();
    // Announce the change, as a host that takes over does.
    Lan::set(&lan.far, "ipv4/conf/eth0/arp_notify", "1");
    Lan::set(&lan.far, "ipv6/conf/eth0/ndisc_notify", "1");
    lan.run(async {
        let mut watched = watch(&["192.0.2.2", "2001:db8::2"]).await;
        watched.mac_is("192.0.2.2", Some(THEIRS)).await;
        watched.mac_is("2001:db8::2", Some(THEIRS)).await;
        lan.far(&format!("link set eth0 address {}", Mac(OTHER)));
        watched.mac_is("192.0.2.2", Some(OTHER)).await;
        watched.mac_is("2001:db8::2", Some(OTHER)).await;
        lan.near(&format!("link set eth0 address {}", Mac([2, 0, 0, 0, 0, 0xd])));
        until("our own address is followed", &mut watched.next_hops, |hops| {
            hops.values().all(|hop| hop.source_mac == [2, 0, 0, 0, 0, 0xd])
        })
        .await;
    });
}

#[test]
fn gateways_are_followed() {
    let lan = Lan::new();
    Lan::set(&lan.near, "ipv4/neigh/eth0/retrans_time_ms", "100");
    lan.run(async {
        lan.near("route add 203.0.113.0/24 via 192.0.2.2");
        lan.near("route add 198.51.100.0/24 via inet6 2001:db8::2");
        lan.near("-6 route add 2001:db8:1::/64 via 2001:db8::2");
        let mut watched = watch(&["203.0.113.5", "198.51.100.5", "2001:db8:1::5"]).await;
        watched.mac_is("203.0.113.5", Some(THEIRS)).await;
        watched.mac_is("198.51.100.5", Some(THEIRS)).await;
        watched.mac_is("2001:db8:1::5", Some(THEIRS)).await;
        // A gateway that does not answer, then none, then the first again.
        lan.near("route replace 203.0.113.0/24 via 192.0.2.77");
        watched.mac_is("203.0.113.5", None).await;
        lan.near("route delete 203.0.113.0/24");
        watched.none("203.0.113.5").await;
        lan.near("route add default via 192.0.2.2");
        watched.mac_is("203.0.113.5", Some(THEIRS)).await;
        lan.near("route add blackhole 203.0.113.5/32");
        watched.none("203.0.113.5").await;
    });
}

#[test]
fn a_silent_neighbour_is_asked_for_until_it_answers() {
    let lan = Lan::new();
    // The kernel gives up soon, so that it is the watch that asks again.
    Lan::set(&lan.near, "ipv4/neigh/eth0/retrans_time_ms", "20");
    Lan::set(&lan.near, "ipv6/neigh/eth0/retrans_time_ms", "20");
    // And it doubts soon. It takes half to one and a half of the first, and must then find that the
    // entry was not used for the time of the second.
    Lan::set(&lan.near, "ipv4/neigh/eth0/base_reachable_time_ms", "2500");
    Lan::set(&lan.near, "ipv4/neigh/eth0/delay_first_probe_time", "1");
    lan.run(async {
        let mut watched = watch(&["192.0.2.21", "2001:db8::21"]).await;
        watched.mac_is("192.0.2.21", None).await;
        watched.mac_is("2001:db8::21", None).await;
        for known in ["192.0.2.21", "2001:db8::21"] {
            eventually("the kernel gives up", || {
                lan.near(&format!("neighbour show {known} dev eth0")).contains("FAILED")
            })
            .await;
        }
        lan.far("address add 192.0.2.21/24 dev eth0");
        lan.far("address add 2001:db8::21/64 dev eth0 nodad");
        watched.mac_is("192.0.2.21", Some(THEIRS)).await;
        watched.mac_is("2001:db8::21", Some(THEIRS)).await;
        // It is noticed when it goes, however long nothing was heard of it: the kernel probes entries
        // in use, and the watch keeps using them.
        let reachable = || lan.near("neighbour show 192.0.2.21 dev eth0").contains("REACHABLE");
        for _ in 0..2 {
            eventually("the kernel doubts it", || !reachable()).await;
            eventually("the kernel has asked it", reachable).await;
        }
        lan.far("address delete 192.0.2.21/24 dev eth0");
        watched.mac_is("192.0.2.21", None).await;
    });
}

#[test]
fn only_what_can_be_forwarded_to_has_a_next_hop() {
    let lan = Lan::new();
    lan.run(async {
        let local = ["192.0.2.1", "127.0.0.1", "2001:db8::1", "192.0.2.255", "203.0.113.5"];
        let mut watched = watch(&local).await;
        watched.wanted.send_modify(|wanted| {
            wanted.insert(address("192.0.2.2"));
        });
        watched.mac_is("192.0.2.2", Some(THEIRS)).await;
        for local in local {
            watched.none(local).await;
        }
        watched.wanted.send_modify(|wanted| {
            wanted.remove(&address("192.0.2.2"));
        });
        watched.none("192.0.2.2").await;
        // The neighbour's address moves here.
        watched.wanted.send_replace([address("192.0.2.2")].into());
        watched.mac_is("192.0.2.2", Some(THEIRS)).await;
        lan.near("address add 192.0.2.2/24 dev eth0");
        watched.none("192.0.2.2").await;
    });
}

#[test]
fn an_interface_that_goes_and_returns() {
    let lan = Lan::new();
    lan.run(async {
        let mut watched = watch(&["192.0.2.2"]).await;
        watched.mac_is("192.0.2.2", Some(THEIRS)).await;
        lan.near("link set eth0 down");
        watched.none("192.0.2.2").await;
        lan.near("link set eth0 up");
        watched.mac_is("192.0.2.2", Some(THEIRS)).await;
        lan.near("link delete eth0");
        watched.none("192.0.2.2").await;
    });
}

#[test]
fn lost_announcements_are_made_good() {
    let lan = Lan::new();
    lan.run(async {
        let mut watched = watch(&["192.0.2.2"]).await;
        watched.mac_is("192.0.2.2", Some(THEIRS)).await;
        // This thread runs the watch too: while it waits for `ip`, nobody reads the socket, and the
        // change at the end no longer fits in.
        let mut batch = Vec::new();
        for round in 0..4 {
            for host in 0..1000 {
                let (high, low) = (host / 250, host % 250 + 1);
                batch.push(format!(
                    "neighbour replace 198.51.{high}.{low} lladdr 02:00:00:00:01:{round:02x} \
                     dev eth0 nud permanent\n"
                ));
            }
        }
        batch.push(format!(
            "neighbour replace 192.0.2.2 lladdr {} dev eth0 nud permanent\n",
            Mac(OTHER)
        ));
        let file = std::env::temp_dir().join(format!("{}.batch", lan.near));
        std::fs::write(&file, batch.concat()).unwrap();
        lan.near(&format!("-batch {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        watched.mac_is("192.0.2.2", Some(OTHER)).await;
    });
}

#[test]
fn the_watch_ends_with_its_user() {
    let lan = Lan::new();
    lan.run(async {
        let (wanted, receiver) = watch::channel(BTreeSet::new());
        let (_next_hops, task) = net::watch_next_hops(receiver).unwrap();
        drop(wanted);
        timeout(PATIENCE, task).await.expect("the task ends").unwrap();
        let (_wanted, receiver) = watch::channel(BTreeSet::new());
        let (next_hops, task) = net::watch_next_hops(receiver).unwrap();
        drop(next_hops);
        timeout(PATIENCE, task).await.expect("the task ends").unwrap();
    });
}

const VIP: &str = "192.0.2.100";
const VIP6: &str = "2001:db8::100";

fn vips() -> Vec<(IpAddr, u8)> {
    vec![(address(VIP), 24), (address(VIP6), 64)]
}

fn held(entry: &HeldAddress) -> bool {
    entry.held && entry.problem.is_none()
}

async fn all_held(holder: &Holder) -> watch::Receiver<HolderState> {
    let mut state = holder.state();
    until("all addresses are held", &mut state, |state| {
        !state.addresses.is_empty() && state.addresses.iter().all(held)
    })
    .await;
    state
}

#[test]
fn floating_addresses_are_held_announced_and_released() {
    let lan = Lan::new();
    lan.mislead(VIP);
    lan.mislead(VIP6);
    lan.run(async {
        let holder = Holder::start("eth0".into(), vips()).unwrap();
        let state = all_held(&holder).await;
        assert_eq!(state.borrow().interface, "eth0");
        assert_eq!(lan.held(&format!("{VIP}/24")).len(), 1);
        let v6 = lan.held(&format!("{VIP6}/64"));
        assert_eq!(v6.len(), 1);
        assert!(v6[0].contains("nodad") && v6[0].contains("deprecated"), "{v6:?}");
        for vip in [VIP, VIP6] {
            eventually("the neighbour learns the new owner", || {
                lan.believed(vip) == Some(Mac(OURS).to_string())
            })
            .await;
        }
        // The host's own connections do not come from an address that may move.
        for (to, from) in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")] {
            let route = lan.near(&format!("route get {to}"));
            assert!(route.contains(&format!("src {from} ")), "{route}");
        }
        holder.release().await.unwrap();
        assert!(lan.held(&format!("{VIP}/24")).is_empty());
        assert!(lan.held(&format!("{VIP6}/64")).is_empty());
        assert!(state.borrow().addresses.is_empty());
    });
}

#[test]
fn what_somebody_takes_off_is_put_on_again() {
    let lan = Lan::new();
    lan.run(async {
        let holder = Holder::start("eth0".into(), vips()).unwrap();
        let mut state = all_held(&holder).await;
        for (index, vip) in [format!("{VIP}/24"), format!("{VIP6}/64")].into_iter().enumerate() {
            for round in 1..3 {
                lan.mislead(vip.split('/').next().unwrap());
                lan.near(&format!("address delete {vip} dev eth0"));
                assert!(lan.held(&vip).is_empty());
                until("it is put on again", &mut state, |state| {
                    held(&state.addresses[index]) && state.addresses[index].restored == round
                })
                .await;
                assert_eq!(lan.held(&vip).len(), 1);
                eventually("it is announced again", || {
                    lan.believed(vip.split('/').next().unwrap()) == Some(Mac(OURS).to_string())
                })
                .await;
            }
        }
    });
}

#[test]
fn a_change_of_our_mac_is_announced() {
    let lan = Lan::new();
    lan.run(async {
        let holder = Holder::start("eth0".into(), vips()).unwrap();
        all_held(&holder).await;
        for vip in [VIP, VIP6] {
            lan.mislead(vip);
        }
        let new = Mac([2, 0, 0, 0, 0, 0xd]);
        lan.near(&format!("link set eth0 address {new}"));
        for vip in [VIP, VIP6] {
            eventually("the neighbour learns it", || lan.believed(vip) == Some(new.to_string()))
                .await;
        }
    });
}

#[test]
fn a_dropped_holder_leaves_the_addresses_and_the_next_takes_them_over() {
    let lan = Lan::new();
    lan.run(async {
        let holder = Holder::start("eth0".into(), vips()).unwrap();
        let mut state = all_held(&holder).await;
        drop(holder);
        until("the task ends", &mut state, |_| false).await;
        assert!(state.has_changed().is_err());
    });
    assert_eq!(lan.held(&format!("{VIP}/24")).len(), 1);
    assert_eq!(lan.held(&format!("{VIP6}/64")).len(), 1);
    lan.run(async {
        let holder = Holder::start("eth0".into(), vips()).unwrap();
        let state = all_held(&holder).await;
        assert!(state.borrow().addresses.iter().all(|entry| entry.restored == 0));
        assert_eq!(lan.held(&format!("{VIP}/24")).len(), 1);
        holder.release().await.unwrap();
        assert!(lan.held(&format!("{VIP}/24")).is_empty());
    });
}

#[test]
fn the_set_of_addresses_can_change() {
    let lan = Lan::new();
    lan.run(async {
        let holder = Holder::start("eth0".into(), vips()).unwrap();
        all_held(&holder).await;
        let new = (address("192.0.2.101"), 32);
        holder.set_addresses(vec![new, vips()[1]]).await;
        let state = holder.state();
        let addresses: Vec<_> = {
            let state = state.borrow();
            assert!(state.addresses.iter().all(held), "{state:?}");
            state.addresses.iter().map(|entry| (entry.address, entry.prefix)).collect()
        };
        assert_eq!(addresses, [new, vips()[1]]);
        assert!(lan.held(&format!("{VIP}/24")).is_empty());
        assert_eq!(lan.held("192.0.2.101/32").len(), 1);
        assert_eq!(lan.held(&format!("{VIP6}/64")).len(), 1);
    });
}

#[test]
fn releasing_the_first_address_of_a_subnet_spares_the_others() {
    let lan = Lan::new();
    Lan::set(&lan.near, "ipv4/conf/all/promote_secondaries", "0");
    Lan::set(&lan.near, "ipv4/conf/eth0/promote_secondaries", "0");
    lan.near("address flush dev eth0 scope global");
    lan.run(async {
        let holder = Holder::start("eth0".into(), vec![(address(VIP), 24)]).unwrap();
        all_held(&holder).await;
        // It comes second, so it would go with the first.
        lan.near("address add 192.0.2.1/24 dev eth0");
        assert!(lan.held("192.0.2.1/24")[0].contains("secondary"));
        holder.release().await.unwrap();
        assert!(lan.held(&format!("{VIP}/24")).is_empty());
        assert_eq!(lan.held("192.0.2.1/24").len(), 1);
    });
    let setting = "/proc/sys/net/ipv4/conf/eth0/promote_secondaries";
    let after = lan.run(async { std::fs::read_to_string(setting).unwrap() });
    assert_eq!(after.trim(), "0");
}

#[test]
fn another_owner_is_reported() {
    let lan = Lan::new();
    lan.far(&format!("address add {VIP}/24 dev eth0"));
    lan.run(async {
        let holder = Holder::start("eth0".into(), vips()).unwrap();
        let mut state = all_held(&holder).await;
        until("the conflict is seen", &mut state, |state| {
            state.addresses[0].conflict == Some(Mac(THEIRS).to_string())
        })
        .await;
        // It is held all the same, and the other address has no conflict.
        let state = state.borrow();
        assert!(state.addresses.iter().all(held));
        assert_eq!(state.addresses[1].conflict, None);
    });
}

#[test]
fn an_interface_that_is_missing_is_waited_for() {
    let lan = Lan::new();
    lan.run(async {
        let holder = Holder::start("eth1".into(), vips()).unwrap();
        let mut state = holder.state();
        until("the problem is told", &mut state, |state| {
            !state.addresses.is_empty()
                && state.addresses.iter().all(|entry| {
                    !entry.held
                        && entry.problem.as_deref() == Some("interface `eth1` does not exist")
                })
        })
        .await;
        lan.near("link add eth1 type veth peer name eth2");
        all_held(&holder).await;
        lan.near("link delete eth1");
        until("it is gone", &mut state, |state| state.addresses.iter().all(|entry| !entry.held))
            .await;
        // There is nothing to take off.
        holder.release().await.unwrap();
    });
}

#[test]
fn what_an_earlier_daemon_left_is_removed() {
    let lan = Lan::new();
    lan.run(async {
        let holder = Holder::start("eth0".into(), vips()).unwrap();
        all_held(&holder).await;
        drop(holder);
        let removed = address::remove_stale("eth0", &vips()[1..]).await.unwrap();
        assert_eq!(removed, vips()[..1]);
        assert!(lan.held(&format!("{VIP}/24")).is_empty());
        assert_eq!(lan.held(&format!("{VIP6}/64")).len(), 1);
        // The host's own are not touched.
        assert_eq!(lan.held("192.0.2.1/24").len(), 1);
        assert_eq!(lan.held("2001:db8::1/64").len(), 1);
    });
}
