use pcap_file::pcapng::{Block, PcapNgReader};

use super::*;

fn packet(interface: &str, after: Option<&str>) -> Packet {
    let frame = |bytes: &str| Frame {
        protocol: Some("tcp".into()),
        source: None,
        destination: None,
        flags: String::new(),
        length: 1500,
        bytes: bytes.into(),
    };
    Packet {
        time: "2026-01-02T03:04:05.678901234Z".parse().unwrap(),
        cpu: 0,
        interface: interface.into(),
        stage: "known".into(),
        action: if after.is_some() { "transmit" } else { "drop" }.into(),
        reason: after.is_none().then(|| "no_flow".into()),
        forwarded: after.map(|_| Direction::From),
        service: Some("web".into()),
        backend: Some("app-01".into()),
        before: frame("00ff10"),
        after: after.map(frame),
    }
}

#[test]
fn each_packet_is_there_before_and_after_with_its_verdict() {
    let mut capture = Capture::new(Vec::new()).unwrap();
    capture.packet(&packet("eth0", Some("0a0b"))).unwrap();
    capture.packet(&packet("eth1", None)).unwrap();
    capture.packet(&packet("eth0", Some("0c"))).unwrap();
    let mut reader = PcapNgReader::new(capture.writer.get_ref().as_slice()).unwrap();
    let mut interfaces = Vec::new();
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.unwrap().into_owned() {
            Block::InterfaceDescription(it) => interfaces.push(it.options),
            Block::EnhancedPacket(it) => {
                assert_eq!(it.original_len, 1500);
                assert_eq!(it.timestamp.as_nanos(), 1_767_323_045_678_901_234);
                let EnhancedPacketOption::Comment(comment) = &it.options[0] else {
                    panic!("{it:?}");
                };
                packets.push((it.interface_id, it.data.to_vec(), comment.to_string()));
            }
            other => panic!("{other:?}"),
        }
    }
    let names: Vec<_> = interfaces.iter().map(|options| format!("{:?}", options[0])).collect();
    assert_eq!(names, ["eth0", "eth0 after", "eth1"].map(|it| format!("IfName({it:?})")));
    let forwarded = "known: forwarded from app-01 (web)".to_owned();
    let dropped = "known: dropped, no_flow, app-01 (web)".to_owned();
    assert_eq!(
        packets,
        [
            (0, vec![0, 0xff, 0x10], forwarded.clone()),
            (1, vec![10, 11], forwarded.clone()),
            (2, vec![0, 0xff, 0x10], dropped),
            (0, vec![0, 0xff, 0x10], forwarded.clone()),
            (1, vec![12], forwarded),
        ]
    );
}

#[test]
fn the_verdict_says_who_got_the_packet() {
    let mut it = packet("eth0", None);
    it.action = "pass".into();
    (it.backend, it.service) = (None, None);
    assert_eq!(verdict(&it), "known: passed to this host, no_flow");
    let mut it = packet("eth0", Some("00"));
    it.reason = Some("backend_gone".into());
    it.forwarded = None;
    assert_eq!(verdict(&it), "known: answered, backend_gone, app-01 (web)");
}
