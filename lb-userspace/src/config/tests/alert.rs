//! `[[alert]]`.

use super::*;
use crate::{
    alert::Severity,
    config::{Alert, Receiver},
};

fn alerts(text: &str) -> Vec<Alert> {
    match parse("test.toml", &good_and(text)) {
        Ok(loaded) => loaded.config.alerts,
        Err(rejected) => panic!("{rejected}"),
    }
}

#[test]
fn each_kind_has_its_keys() {
    let found = alerts(
        "[[alert]]\nkind = \"webhook\"\nurl = \"https://alerts.example.org/x\"\n\
         [[alert]]\nkind = \"syslog\"\nname = \"log\"\nlevel = \"critical\"\nsocket = \"/run/log\"\n\
         [[alert]]\nkind = \"syslog\"\n",
    );
    let names: Vec<_> = found.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["webhook", "log", "syslog"]);
    let least: Vec<_> = found.iter().map(|it| it.least).collect();
    assert_eq!(least, [Severity::Info, Severity::Critical, Severity::Info]);
    assert_eq!(found[1].receiver, Receiver::Syslog { socket: "/run/log".into() });
    assert_eq!(found[2].receiver, Receiver::Syslog { socket: "/dev/log".into() });
}

#[test]
fn what_is_missing_or_too_much_is_said() {
    let start = GOOD.matches('\n').count();
    for (section, line, message) in [
        ("kind = \"telegram\"\nchat_id = \"1\"", 1, "an alert by telegram needs `token_file`"),
        ("kind = \"slack\"", 1, "an alert by slack needs `url_file`"),
        ("kind = \"webhook\"", 1, "an alert by webhook needs `url`"),
        ("kind = \"syslog\"\nchat_id = \"1\"", 3, "`chat_id` means nothing to an alert by syslog"),
        ("kind = \"syslog\"\n[[alert]]\nkind = \"syslog\"", 4, "two alerts have the name `syslog`"),
        ("kind = \"webhook\"\nurl = \"mailto:x\"", 3, "`url` is not an http or https address"),
        ("kind = \"syslog\"\nlevel = \"loud\"", 3, "`level` cannot be \"loud\""),
    ] {
        let text = good_and(&format!("[[alert]]\n{section}\n"));
        assert_eq!(errors(&text), [(start + line, message.to_owned())]);
    }
}
