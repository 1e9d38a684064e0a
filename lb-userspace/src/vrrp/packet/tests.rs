//! The codec: byte for byte, every refusal, and whatever bytes there may be.

use proptest::prelude::*;

use super::*;

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11));
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 100));
const GROUP: IpAddr = IpAddr::V4(GROUP_V4);
const SECOND: Duration = Duration::from_secs(1);

fn source_v6() -> IpAddr {
    "fe80::11".parse().unwrap()
}

fn advert(version: Version, addresses: &[IpAddr]) -> Advert {
    let addresses = addresses.to_vec();
    Advert { version, vrid: 51, priority: 100, interval: SECOND, addresses, password: None }
}

fn from(source: IpAddr, destination: IpAddr) -> Envelope {
    Envelope { source, destination, hop_limit: HOP_LIMIT }
}

fn expected() -> Expected {
    Expected {
        version: Version::V3,
        password: None,
        interval: SECOND,
        unicast: false,
        peers: vec![SOURCE],
        own: "192.0.2.12".parse().unwrap(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[test]
fn adverts_byte_for_byte() {
    let message = advert(Version::V3, &[VIP]).encode(SOURCE, GROUP, ChecksumForm::PseudoHeader);
    assert_eq!(hex(&message), "3133640100640568c0000264");
    let message = advert(Version::V3, &[VIP]).encode(SOURCE, GROUP, ChecksumForm::Message);
    assert_eq!(hex(&message), "313364010064a802c0000264");
    let password = Some(Password::new("hunter2"));
    let message = Advert { password, ..advert(Version::V2, &[VIP]) };
    let message = message.encode(SOURCE, GROUP, ChecksumForm::PseudoHeader);
    assert_eq!(hex(&message), "2133640101014909c000026468756e7465723200");
}

#[test]
fn every_form_of_checksum_is_told_apart() {
    let node: IpAddr = "192.0.2.12".parse().unwrap();
    for form in [ChecksumForm::PseudoHeader, ChecksumForm::Message, ChecksumForm::GroupPseudoHeader]
    {
        let message = advert(Version::V3, &[VIP]).encode(SOURCE, node, form);
        let (read, found) = Advert::parse(&message, &from(SOURCE, node)).unwrap();
        assert_eq!((read, found), (advert(Version::V3, &[VIP]), form));
    }
    let v6 = advert(Version::V3, &["2001:db8::100".parse().unwrap()]);
    let message = v6.encode(source_v6(), GROUP_V6.into(), ChecksumForm::Message);
    let (read, found) = Advert::parse(&message, &from(source_v6(), GROUP_V6.into())).unwrap();
    assert_eq!((read, found), (v6, ChecksumForm::PseudoHeader), "IPv6 has one form");
}

#[test]
fn every_refusal_has_its_reason() {
    let good = advert(Version::V3, &[VIP]).encode(SOURCE, GROUP, ChecksumForm::PseudoHeader);
    let parse = |message: &[u8], envelope: &Envelope| Advert::parse(message, envelope).err();
    let group = from(SOURCE, GROUP);
    assert_eq!(parse(&good, &group), None);
    let with = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        message
    };
    assert_eq!(parse(&good[..7], &group), Some(Refusal::Short));
    assert_eq!(parse(&good, &Envelope { hop_limit: 254, ..group }), Some(Refusal::HopLimit));
    assert_eq!(parse(&with(0, 0x41), &group), Some(Refusal::Version));
    assert_eq!(parse(&with(0, 0x32), &group), Some(Refusal::Type));
    assert_eq!(parse(&with(3, 2), &group), Some(Refusal::Length));
    assert_eq!(parse(&with(3, 0), &group), Some(Refusal::Length));
    assert_eq!(parse(&[&good[..], &[0, 0]].concat(), &group), Some(Refusal::Length));
    assert_eq!(parse(&with(2, 101), &group), Some(Refusal::Checksum));
    let v6 = from(source_v6(), GROUP_V6.into());
    assert_eq!(parse(&with(0, 0x21), &v6), Some(Refusal::Version), "version 2 over IPv6");
    let none = Advert { interval: Duration::ZERO, ..advert(Version::V3, &[VIP]) };
    let none = none.encode(SOURCE, GROUP, ChecksumForm::Message);
    assert_eq!(parse(&none, &group), Some(Refusal::Interval));
    let mut header = advert(Version::V2, &[VIP]).encode(SOURCE, GROUP, ChecksumForm::Message);
    header[4] = 2; // an authentication header, RFC 2402
    header[6..8].copy_from_slice(&[0, 0]);
    let right = !sum(&header, 0);
    header[6..8].copy_from_slice(&right.to_be_bytes());
    assert_eq!(parse(&header, &group), Some(Refusal::Authentication));
    // By unicast the hop limit says nothing.
    let node: IpAddr = "192.0.2.12".parse().unwrap();
    let message = advert(Version::V3, &[VIP]).encode(SOURCE, node, ChecksumForm::Message);
    assert_eq!(parse(&message, &Envelope { hop_limit: 63, ..from(SOURCE, node) }), None);
}

#[test]
fn every_disagreement_has_its_reason() {
    let group = from(SOURCE, GROUP);
    let v3 = advert(Version::V3, &[VIP]);
    assert_eq!(v3.check(&group, &expected()), Ok(()));
    let v2 = Expected { version: Version::V2, ..expected() };
    assert_eq!(v3.check(&group, &v2), Err(Refusal::OtherVersion));
    let other = Advert { interval: SECOND * 2, ..advert(Version::V2, &[VIP]) };
    assert_eq!(other.check(&group, &v2), Err(Refusal::Interval));
    assert_eq!(Advert { interval: SECOND * 2, ..v3.clone() }.check(&group, &expected()), Ok(()));
    let secret = Expected { password: Some(Password::new("a long password")), ..v2.clone() };
    let said = |text| Advert { password: Some(Password::new(text)), ..advert(Version::V2, &[VIP]) };
    assert_eq!(said("a long p").check(&group, &secret), Ok(()), "only 8 bytes count");
    assert_eq!(said("a long q").check(&group, &secret), Err(Refusal::Password));
    assert_eq!(said("a").check(&group, &v2), Err(Refusal::Authentication));
    assert_eq!(advert(Version::V2, &[VIP]).check(&group, &secret), Err(Refusal::Authentication));
    let direct = from(SOURCE, "192.0.2.12".parse().unwrap());
    assert_eq!(v3.check(&direct, &expected()), Err(Refusal::Unicast));
    let unicast = Expected { unicast: true, ..expected() };
    assert_eq!(v3.check(&group, &unicast), Err(Refusal::Multicast));
    assert_eq!(v3.check(&direct, &unicast), Ok(()));
    let nobody = Expected { peers: Vec::new(), ..unicast };
    assert_eq!(v3.check(&direct, &nobody), Err(Refusal::Stranger));
    let own = Expected { own: SOURCE, ..expected() };
    assert_eq!(v3.check(&group, &own), Err(Refusal::OwnAddress));
}

#[test]
fn labels_are_different() {
    let labels: std::collections::BTreeSet<_> = Refusal::ALL.iter().map(|it| it.label()).collect();
    assert_eq!(labels.len(), Refusal::ALL.len());
    assert!(!format!("{:?}", Password::new("secret")).contains("secret"));
}

fn any_advert() -> impl Strategy<Value = (Advert, IpAddr, IpAddr)> {
    let v4 = prop::collection::vec(any::<u32>().prop_map(|a| IpAddr::V4(a.into())), 1..9);
    let v6 = prop::collection::vec(any::<u128>().prop_map(|a| IpAddr::V6(a.into())), 1..9);
    let v6 = (v6, any::<u128>()).prop_map(|(addresses, source)| {
        (addresses, IpAddr::V6(source.into()), IpAddr::V6(GROUP_V6), Version::V3)
    });
    let v4 = (v4, any::<u32>(), any::<bool>()).prop_map(|(addresses, source, old)| {
        let version = if old { Version::V2 } else { Version::V3 };
        (addresses, IpAddr::V4(source.into()), GROUP, version)
    });
    (prop_oneof![v4, v6], 1_u8.., any::<u8>(), 1_u32..4096, any::<Option<[u8; 8]>>()).prop_map(
        |((addresses, source, group, version), vrid, priority, time, password)| {
            let (interval, password) = match version {
                Version::V2 => (SECOND * (time % 255 + 1), password.map(Password)),
                Version::V3 => (CENTISECOND * time, None),
            };
            let advert = Advert { version, vrid, priority, interval, addresses, password };
            (advert, source, group)
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read((advert, source, group) in any_advert(), plain: bool) {
        let form = if plain { ChecksumForm::Message } else { ChecksumForm::PseudoHeader };
        let message = advert.encode(source, group, form);
        let (read, _) = Advert::parse(&message, &from(source, group)).unwrap();
        prop_assert_eq!(read, advert);
    }

    #[test]
    fn any_bytes_are_read_safely(
        message in prop::collection::vec(any::<u8>(), 0..300),
        v6: bool,
        hop_limit: u8,
    ) {
        let (source, destination) =
            if v6 { (source_v6(), GROUP_V6.into()) } else { (SOURCE, GROUP) };
        let envelope = Envelope { source, destination, hop_limit };
        // Nearly all are refused; none may panic, and the count must never be believed.
        if let Ok((advert, _)) = Advert::parse(&message, &envelope) {
            prop_assert_eq!(hop_limit, HOP_LIMIT);
            prop_assert!(message.len() >= HEADER + advert.addresses.len() * 4);
        }
    }

    #[test]
    fn a_changed_byte_is_noticed(
        (advert, source, group) in any_advert(),
        at: prop::sample::Index,
        flip in 1_u8..,
    ) {
        let mut message = advert.encode(source, group, ChecksumForm::PseudoHeader);
        let at = at.index(message.len());
        message[at] ^= flip;
        if let Ok((read, form)) = Advert::parse(&message, &from(source, group)) {
            // One byte can only turn the sum of one form into that of another.
            prop_assert!(form != ChecksumForm::PseudoHeader || read == advert);
        }
    }

    #[test]
    fn no_piece_of_an_advert_is_one((advert, source, group) in any_advert(), cut: prop::sample::Index) {
        let message = advert.encode(source, group, ChecksumForm::PseudoHeader);
        let piece = &message[..cut.index(message.len())];
        prop_assert!(Advert::parse(piece, &from(source, group)).is_err());
    }
}
