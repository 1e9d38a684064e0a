//! How much room a configuration needs in the kernel's tables, and how much it gets.
//!
//! All of it follows from the configuration alone, so that every node builds the same tables.

use lb_common::{limits, maglev, service::Balance};

use super::{Config, Forwarding, Service};
use crate::dataplane::Sizes;

/// Most slots of a schedule, the table of a service that is not balanced by `maglev`.
const LONGEST_SCHEDULE: u32 = 4096;

/// Slots that the tables of all services may have together before they are made sparser, if the
/// configuration does not say so: 128 MiB, and as much again for the tables that replace them. Those of
/// steered services come on top.
const DEFAULT_ROOM: u64 = 1 << 24;

/// What is tried in turn: slots for each backend of a Maglev table.
const DENSITIES: [u32; 5] = [maglev::FULL_DENSITY, 50, 20, 10, 5];

/// How finely the tables divide new connections among the backends. It is the same for all services:
/// as fine as their tables have room for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Density(u32);

impl Default for Density {
    fn default() -> Self {
        Self::FULL
    }
}

impl Density {
    /// Shares are right within 1 %.
    pub const FULL: Self = Self(maglev::FULL_DENSITY);

    /// Slots of the Maglev table of a service with so many backends.
    pub fn maglev_size(self, backends: u32) -> u32 {
        maglev::table_size_within(backends, self.0)
    }

    /// Most slots of a schedule for so many backends: at least one for each.
    pub fn longest_schedule(self, backends: u32) -> u32 {
        (LONGEST_SCHEDULE * self.0 / maglev::FULL_DENSITY).max(backends)
    }

    /// The next sparser one, down to schedules in which each backend stands about once.
    pub fn sparser(self) -> Option<Self> {
        let next = DENSITIES.into_iter().find(|&density| density < self.0);
        next.or((self.0 > 0).then_some(0)).map(Self)
    }

    /// How much a backend's share may be wrong by, in percent of that share.
    pub fn error_percent(self) -> u32 {
        100 / self.0.max(1)
    }
}

/// What a configuration needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Services.
    pub services: u32,
    /// Backends of all services.
    pub backends: u32,
    /// Slots of the tables of all services, while all backends serve with the weights of the file.
    pub slots: u64,
    /// How fine these tables are.
    pub density: Density,
}

/// What `config` needs.
pub fn needs(config: &Config) -> Needs {
    let (steered, others): (Vec<_>, Vec<_>) = config.services.iter().partition(|it| is_steered(it));
    let steered: u64 = steered.into_iter().map(|service| slots(service, Density::FULL)).sum();
    let said = config.dataplane.max_slots.map(|slots| u64::from(slots / 2));
    let room = said.map_or(DEFAULT_ROOM, |slots| slots.saturating_sub(steered));
    let total = |density: u32| -> u64 {
        others.iter().map(|service| slots(service, Density(density))).sum()
    };
    // The sparsest one is not given up: `check` or the size of the map answers for it.
    let density = DENSITIES.into_iter().find(|&density| total(density) <= room);
    let density = density.unwrap_or(DENSITIES[DENSITIES.len() - 1]);
    let backends = config.services.iter().map(|service| service.backends.len()).sum::<usize>();
    Needs {
        services: config.services.len() as u32,
        backends: backends as u32,
        slots: steered + total(density),
        density: Density(density),
    }
}

fn is_steered(service: &Service) -> bool {
    service.forward != Forwarding::Nat
}

/// Slots of a service's table.
///
/// That of a steered service has one size, however short room is: connections that nothing is known of
/// but their slot are in it, so it can grow but never shrink.
fn slots(service: &Service, density: Density) -> u64 {
    let backends = service.backends.len() as u32;
    if is_steered(service) {
        return maglev::steered_size(backends).into();
    }
    let table = if service.balance == Balance::Maglev {
        density.maglev_size(backends)
    } else {
        let weights = service.backends.iter().map(|backend| backend.weight);
        let divisor = weights.clone().fold(0, gcd).max(1);
        let period: u32 = weights.map(|weight| weight / divisor).sum();
        period.min(density.longest_schedule(backends))
    };
    // Behind the table, each backend once.
    u64::from(table) + u64::from(backends)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The sizes that the maps are created with: what the file says, or else what it needs and a quarter
/// more, so that most reloads find room.
///
/// For slots that is twice the need and a quarter of that: a table that is replaced stays until the
/// new one is in force.
pub fn sizes(config: &Config) -> Sizes {
    let Needs { services, backends, slots, .. } = needs(config);
    let with_spare = |need: u64, default: u32, most: u32| {
        (need + need / 4).clamp(u64::from(default), u64::from(most)) as u32
    };
    let dataplane = &config.dataplane;
    Sizes {
        services: dataplane.max_services.unwrap_or_else(|| {
            with_spare(services.into(), limits::DEFAULT_SERVICES, limits::MOST_SERVICES)
        }),
        backends: dataplane.max_backends.unwrap_or_else(|| {
            with_spare(backends.into(), limits::DEFAULT_BACKENDS, limits::MOST_BACKENDS)
        }),
        slots: dataplane
            .max_slots
            .unwrap_or_else(|| with_spare(2 * slots, limits::DEFAULT_SLOTS, limits::MOST_SLOTS)),
    }
}

/// What in `config` has no room in maps of these sizes, in sentences.
pub fn shortages(config: &Config, sizes: Sizes) -> Vec<String> {
    let Needs { services, backends, slots, .. } = needs(config);
    let needed = [
        (u64::from(services), sizes.services, "services", "max_services"),
        (u64::from(backends), sizes.backends, "backends", "max_backends"),
        // New tables are written beside the old ones.
        (2 * slots, sizes.slots, "slots", "max_slots"),
    ];
    let short = needed.into_iter().filter(|&(need, room, ..)| need > u64::from(room));
    short
        .map(|(need, room, what, key)| {
            format!(
                "it needs room for {need} {what}, and the kernel's tables have {room}: restart \
                 ballast, which makes them larger and keeps all connections (unless `{key}` in \
                 [dataplane] says less)"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Backend, parse};

    fn config(services: usize, backends: usize, balance: Balance) -> Config {
        let text = r#"
            [[node]]
            name = "lb-01"
            address = "192.0.2.11"
            interface = "eth0"
            [[floating]]
            vrid = 51
            addresses = ["192.0.2.100/24"]
            [[service]]
            name = "web"
            listen = "192.0.2.100:80"
            [[service.backend]]
            name = "app-01"
            address = "192.0.2.21:8080"
        "#;
        let mut config = parse("test.toml", text).expect("the test's configuration").config;
        let mut service = config.services.remove(0);
        service.balance = balance;
        service.backends = vec![service.backends[0].clone(); backends];
        config.services = vec![service; services];
        config
    }

    #[test]
    fn a_small_site_gets_the_defaults() {
        let config = config(3, 10, Balance::LeastConn);
        assert_eq!(sizes(&config), Sizes::default());
        let needs = needs(&config);
        assert_eq!((needs.services, needs.backends, needs.slots), (3, 30, 60));
        assert_eq!(needs.density, Density::FULL);
        assert!(shortages(&config, Sizes::default()).is_empty());
    }

    #[test]
    fn maps_grow_with_the_configuration_and_leave_room_for_reloads() {
        let config = config(10_000, 100, Balance::LeastConn);
        let sizes = sizes(&config);
        assert_eq!((sizes.services, sizes.backends), (12_500, 1_250_000));
        assert_eq!(sizes.slots, 5_000_000);
        assert!(shortages(&config, sizes).is_empty());
        let short = shortages(&config, Sizes::default());
        assert_eq!(short.len(), 3, "{short:?}");
        assert!(short[0].contains("10000 services") && short[0].contains("restart ballast"));
    }

    #[test]
    fn maglev_tables_that_share_the_room_are_sparser() {
        let of = |services| needs(&config(services, 100, Balance::Maglev));
        assert_eq!(of(1000).density, Density::FULL);
        let many = of(10_000);
        assert_eq!(many.density, Density(10));
        assert_eq!(many.slots, 10_000 * (1021 + 100));
        assert_eq!(many.density.error_percent(), 10);

        let mut roomy = config(10_000, 100, Balance::Maglev);
        roomy.dataplane.max_slots = Some(limits::MOST_SLOTS);
        assert_eq!(needs(&roomy).density, Density(50));
        assert_eq!(sizes(&roomy).slots, limits::MOST_SLOTS);
    }

    #[test]
    fn tables_of_steered_services_count_with_their_one_size() {
        let mut config = config(1001, 100, Balance::Maglev);
        for service in &mut config.services[1..] {
            service.forward = Forwarding::Direct;
        }
        let full = needs(&config);
        assert_eq!((full.slots, full.density), (1000 * 16_384 + 16_381 + 100, Density::FULL));
        config.services.extend(vec![config.services[1].clone(); 1000]);
        let more = needs(&config);
        assert_eq!((more.slots, more.density), (2000 * 16_384 + 16_381 + 100, Density::FULL));
        // What the file says is for all of them.
        config.dataplane.max_slots = Some(2 * (2000 * 16_384 + 1021 + 100));
        assert_eq!(needs(&config).slots, 2000 * 16_384 + 1021 + 100);
    }

    #[test]
    fn what_the_file_says_is_what_the_maps_get() {
        let mut config = config(2, 2, Balance::RoundRobin);
        config.dataplane.max_services = Some(7);
        config.dataplane.max_backends = Some(8);
        config.dataplane.max_slots = Some(2048);
        assert_eq!(sizes(&config), Sizes { services: 7, backends: 8, slots: 2048 });
    }

    #[test]
    fn weights_count_in_lowest_terms() {
        let mut config = config(1, 2, Balance::Random);
        let weighted = |weight| Backend { weight, ..config.services[0].backends[0].clone() };
        config.services[0].backends = vec![weighted(20), weighted(30)];
        assert_eq!(needs(&config).slots, 5 + 2);
    }

    #[test]
    fn there_is_an_end_to_sparser_tables() {
        let all: Vec<_> = std::iter::successors(Some(Density::FULL), |it| it.sparser()).collect();
        assert_eq!(all.len(), 6);
        assert_eq!(all[5].longest_schedule(7), 7);
    }
}
