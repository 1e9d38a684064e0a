//! `[[anycast]]` and the services on it.

use super::*;

const BLOCK: &str = "[[anycast]]\naddresses = [\"198.51.100.80\"]\n";

fn service(lines: &str) -> String {
    let backend = "[[service.backend]]\nname = \"a\"\naddress = \"192.0.2.21:80\"\n";
    format!("[[service]]\nname = \"any\"\nlisten = \"198.51.100.80:80\"\n{lines}{backend}")
}

#[test]
fn every_node_has_its_addresses() {
    let text = good_and(&format!("{BLOCK}{}", service("forward = \"tunnel\"\n")));
    let config = parse("test.toml", &text).unwrap().config;
    assert_eq!(config.anycast, ["198.51.100.80".parse::<std::net::IpAddr>().unwrap()]);
    assert!(config.service_addresses().any(|address| address == config.anycast[0]));
    assert!(config.service_addresses().any(|address| address == config.floating[0].addresses[0].0));
}

#[test]
fn what_one_node_alone_must_do_is_refused_on_it() {
    mistake(
        &good_and(&format!("{BLOCK}{}", service("forward = ▶\"nat\"\n"))),
        "on an anycast address, backends must answer the clients by themselves",
        "`forward = \"direct\"` or `\"tunnel\"`",
    );
    let twice = "[[anycast]]\naddresses = [▶\"192.0.2.100\"]\n";
    let found = mistake(&good_and(twice), "192.0.2.100 stands twice", "either floating");
    assert_eq!(found.labels[0].text, "here too");
    mistake(&good_and("[[anycast]]\naddresses = ▶[]\n"), "`addresses` is empty", "198.51.100.80");
    mistake(
        &good_and("[[anycast]]\naddresses = [▶\"224.0.0.1\"]\n"),
        "224.0.0.1 is a multicast address",
        "an address that a host can have",
    );
    let errors = errors(&good_and(&format!(
        "{BLOCK}{}",
        service("forward = \"direct\"\npath = \"proxy\"\n")
    )));
    let said = errors.iter().any(|(_, text)| text.contains("`path` must be \"kernel\""));
    assert!(said, "{errors:?}");
}
