//! What belongs to the contract but not to this version.

use super::*;

#[test]
fn what_is_not_in_this_version() {
    warning(
        &good_and("[▶api]\nlisten = \"127.0.0.1:9180\"\n"),
        "`[api]` is not in this version yet: no metrics, dashboard or health page is served; the \
         section is ignored",
        "keep the section",
    );
}

#[test]
fn values_of_later_versions_are_checked() {
    let start = GOOD.matches('\n').count();
    for (section, line, message) in [
        ("[consensus]\netcd = [\"ftp://x\"]\n", 2, "`etcd` is not an http or https address"),
        ("[api]\nlisten = \"127.0.0.1\"\n", 2, "`listen` has no port"),
    ] {
        assert_eq!(errors(&good_and(section)), [(start + line, message.to_owned())]);
    }
    let postgres = |lines: &str| {
        good_and(&format!(
            "[[postgres]]\n{lines}\nname = \"db\"\nuser = \"u\"\n\
             server = [{{ name = \"pg\", address = \"192.0.2.31:5432\" }}]\n"
        ))
    };
    for (line, message) in [
        ("read_write = \"192.0.2.101:5432\"", "no `[[floating]]` holds 192.0.2.101"),
        ("read_only = \"192.0.2.100:80\"", "two services listen on 192.0.2.100:80 (tcp)"),
        ("promotion = \"automatic\"", "a promotion without a person needs `[consensus]`"),
        ("promotion = \"veto 30\"", "the time of `promotion` has no unit after `30`"),
    ] {
        assert_eq!(errors(&postgres(line)), [(start + 2, message.to_owned())]);
    }
}
