//! Hashes that both sides compute: cheap in a BPF program, spread well over the low bits.

/// Mixes two words to 32 bits (the finaliser of `MurmurHash3`, Appleby 2011).
#[must_use]
#[inline(always)]
pub const fn mix(a: u64, b: u64) -> u32 {
    let mut h = a ^ b.rotate_left(29).wrapping_mul(GOLDEN);
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (h >> 32) as u32
}

/// Hash of who sends to whom, which chooses the slot of a table.
///
/// An address is two native words as they lie in the packet (IPv4: its one word, and 0); `ports` are the
/// source and the destination port as they lie in the packet, read as one native word.
#[must_use]
#[inline(always)]
pub const fn tuple(src: (u64, u64), dst: (u64, u64), ports: u32) -> u32 {
    let ports = ports as u64;
    mix(src.0 ^ (ports << 32), src.1 ^ dst.0.rotate_left(32) ^ dst.1.rotate_left(13) ^ ports)
}

/// 2^64 divided by the golden ratio: the upper bits of a product with it are spread well (Knuth, The Art of
/// Computer Programming, volume 3, section 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Place of an address in `VIPS`: its last two bytes, read as a native word. They are what tells the addresses of
/// a network apart, and a load is all that they cost. An address of another network that ends like a floating one
/// is looked at closer, and passed.
#[must_use]
#[inline(always)]
pub const fn vip_place(last: u16) -> u32 {
    last as u32
}

/// Bit of `VIPS`: a floating address that has services which are not steered, or none at all.
pub const VIP: u8 = 1;

/// Bit of `VIPS`: a floating address that has steered services. With this bit alone it has no others.
pub const VIP_STEERED: u8 = 2;

/// Bit of `PORTS`: a steered service.
pub const PORT_STEERED: u8 = 1;

/// Bit of `PORTS`: any service, or one that is removed and whose connections still go on.
pub const PORT_SERVED: u8 = 2;

/// Place of a service in `PORTS`.
///
/// `vip_bit` is the address's place in `VIPS`, `port` the two bytes as they lie in the packet.
#[must_use]
#[inline(always)]
pub const fn port_place(vip_bit: u32, port: u16, protocol: u8) -> u32 {
    let word = (vip_bit as u64) ^ (port as u64) << 16 ^ (protocol as u64) << 32;
    (word.wrapping_mul(GOLDEN) >> (64 - crate::limits::PORTS_BYTES.trailing_zeros())) as u32
}

/// Place of a MAC address in `MACS`, where those that no interface of this node has are 1: its last two bytes,
/// read as a native word. Zeros know no address, and take every frame for this node's.
#[must_use]
#[inline(always)]
pub const fn mac_place(last: u16) -> u32 {
    last as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{mix, port_place, vip_place};
    use crate::limits::{PORTS_BYTES, VIP_BYTES};

    #[test]
    fn services_of_an_address_have_places_of_their_own() {
        let bits: HashSet<_> = (1..=1000_u16)
            .flat_map(|port| [6, 17].map(|carried| port_place(4711, port.to_be(), carried)))
            .collect();
        assert!(bits.len() > 1900, "{}", bits.len());
        assert!(bits.iter().all(|bit| (*bit as usize) < PORTS_BYTES));
    }

    #[test]
    fn places_lie_in_the_filter() {
        assert!((0..=u16::MAX).all(|last| (vip_place(last) as usize) < VIP_BYTES));
    }

    #[test]
    fn every_input_bit_moves_half_of_the_output() {
        for bit in 0..128 {
            let mut changed = 0;
            for sample in 0..64_u64 {
                let (a, b) = (sample.wrapping_mul(0x1234_5678_9abc_def1), sample << 7 ^ 0x55);
                let (c, d) = if bit < 64 { (a ^ 1 << bit, b) } else { (a, b ^ 1 << (bit - 64)) };
                changed += (mix(a, b) ^ mix(c, d)).count_ones();
            }
            assert!((64 * 12..64 * 20).contains(&changed), "bit {bit}: {changed} of 2048");
        }
    }
}
