//! The flows of steered services, as far as samples show them. Pure.
//!
//! A steered packet leaves no entry in the kernel's tables, so nobody knows all flows of such a service.
//! The kernel program shows one packet in [`SAMPLE_EVERY`] of each backend: a flow that is busy comes by
//! often, a quiet one hardly ever.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use lb_common::trace::{SAMPLE_EVERY, Sample};

/// Most flows that are kept; of more, those that were seen last.
const MOST: usize = 1024;

/// A flow that no sample has shown for so long is forgotten.
const KEPT: Duration = Duration::from_mins(1);

/// Rates follow the samples with this time constant.
const SMOOTHING: Duration = Duration::from_secs(10);

/// What samples tell of a flow.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledFlow {
    /// IP protocol number.
    pub protocol: u8,
    /// The client.
    pub client: SocketAddr,
    /// The floating address and port.
    pub listen: SocketAddr,
    /// Identifier of the backend.
    pub backend_id: u32,
    /// Packets since it was first sampled, estimated.
    pub packets: u64,
    /// Bytes since it was first sampled, estimated.
    pub bytes: u64,
    /// Packets a second, estimated.
    pub packets_per_second: f64,
    /// When it was last sampled.
    pub last: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    protocol: u8,
    client: SocketAddr,
    listen: SocketAddr,
}

/// The flows that were sampled lately.
#[derive(Debug, Default)]
pub struct Sampled {
    flows: HashMap<Key, SampledFlow>,
    at: Duration,
}

impl Sampled {
    /// Takes the samples that came since the last call. `now` is on the monotonic clock.
    pub fn take(&mut self, samples: &[Sample], now: Duration) {
        let seconds = now.saturating_sub(self.at).as_secs_f64().max(0.001);
        self.at = now;
        let stays = (-seconds / SMOOTHING.as_secs_f64()).exp();
        for flow in self.flows.values_mut() {
            flow.packets_per_second *= stays;
        }
        for sample in samples {
            let [a, b, c, d] = sample.ports;
            let key = Key {
                protocol: sample.protocol,
                client: socket(sample.src, [a, b]),
                listen: socket(sample.dst, [c, d]),
            };
            let flow = self.flows.entry(key).or_insert_with(|| SampledFlow {
                protocol: key.protocol,
                client: key.client,
                listen: key.listen,
                backend_id: sample.backend,
                packets: 0,
                bytes: 0,
                packets_per_second: 0.0,
                last: now,
            });
            flow.backend_id = sample.backend;
            flow.packets += SAMPLE_EVERY;
            flow.bytes += SAMPLE_EVERY * u64::from(sample.bytes);
            flow.packets_per_second += (1.0 - stays) * SAMPLE_EVERY as f64 / seconds;
            flow.last = now;
        }
        self.flows.retain(|_, flow| now.saturating_sub(flow.last) < KEPT);
        if self.flows.len() > MOST {
            let mut last: Vec<_> = self.flows.values().map(|flow| flow.last).collect();
            let place = last.len() - MOST;
            let oldest_kept = *last.select_nth_unstable(place).1;
            self.flows.retain(|_, flow| flow.last >= oldest_kept);
            // Of those that came together with the oldest, any: nothing tells them apart.
            let mut surplus = self.flows.len().saturating_sub(MOST);
            self.flows.retain(|_, flow| {
                let goes = surplus > 0 && flow.last == oldest_kept;
                surplus -= usize::from(goes);
                !goes
            });
        }
    }

    /// The flows, the busiest first.
    pub fn flows(&self) -> Vec<SampledFlow> {
        let mut flows: Vec<_> = self.flows.values().cloned().collect();
        flows.sort_by(|one, other| {
            let busier = other.packets_per_second.total_cmp(&one.packets_per_second);
            busier.then_with(|| one.client.cmp(&other.client))
        });
        flows
    }
}

fn socket(address: [u8; 16], port: [u8; 2]) -> SocketAddr {
    let address = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
    SocketAddr::new(address, u16::from_be_bytes(port))
}

#[cfg(test)]
mod tests {
    use lb_common::service::mapped;

    use super::*;

    fn sample(port: u16, backend: u32) -> Sample {
        let [a, b] = port.to_be_bytes();
        Sample {
            src: mapped([192, 0, 2, 9]),
            dst: mapped([192, 0, 2, 100]),
            ports: [a, b, 0, 80],
            backend,
            bytes: 100,
            protocol: 6,
            ..Sample::ZERO
        }
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_steady_flow_has_its_rate() {
        let mut sampled = Sampled::default();
        sampled.take(&[], at(100));
        for second in 101..=160 {
            sampled.take(&[sample(1, 7), sample(1, 7)], at(second));
        }
        let flows = sampled.flows();
        assert_eq!(flows.len(), 1);
        let flow = &flows[0];
        assert_eq!(flow.client, "192.0.2.9:1".parse().unwrap());
        assert_eq!(flow.listen, "192.0.2.100:80".parse().unwrap());
        assert_eq!((flow.packets, flow.bytes, flow.backend_id), (122_880, 12_288_000, 7));
        let rate = flow.packets_per_second;
        assert!((rate - 2048.0).abs() < 10.0, "{rate}");
    }

    #[test]
    fn what_is_not_sampled_any_more_fades_and_goes() {
        let mut sampled = Sampled::default();
        sampled.take(&[sample(1, 7)], at(100));
        let begun = sampled.flows()[0].packets_per_second;
        sampled.take(&[], at(110));
        let later = sampled.flows()[0].packets_per_second;
        assert!(later > 0.3 * begun && later < 0.4 * begun, "{begun} {later}");
        sampled.take(&[], at(159));
        assert_eq!(sampled.flows().len(), 1);
        sampled.take(&[], at(160));
        assert!(sampled.flows().is_empty());
    }

    #[test]
    fn there_are_never_too_many_and_the_last_stay() {
        let mut sampled = Sampled::default();
        let samples =
            |from: u16, to: u16| (from..to).map(|port| sample(port, 1)).collect::<Vec<_>>();
        sampled.take(&samples(1, 1001), at(10));
        sampled.take(&samples(1001, 1501), at(11));
        let flows = sampled.flows();
        assert_eq!(flows.len(), MOST);
        assert!((1001..1501).all(|port| flows.iter().any(|flow| flow.client.port() == port)));
        sampled.take(&samples(2000, 9000), at(12));
        assert_eq!(sampled.flows().len(), MOST);
    }

    #[test]
    fn the_busiest_come_first_and_a_flow_that_moves_is_one() {
        let mut sampled = Sampled::default();
        sampled.take(&[sample(1, 7), sample(2, 7), sample(2, 8)], at(10));
        let flows = sampled.flows();
        let shown: Vec<_> = flows.iter().map(|it| (it.client.port(), it.backend_id)).collect();
        assert_eq!(shown, [(2, 8), (1, 7)]);
    }
}
