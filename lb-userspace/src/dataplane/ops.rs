//! What is written to the maps, and what a previous daemon wrote.

use std::collections::BTreeMap;

use lb_common::{
    backend::Backend,
    service::{Service, ServiceKey, Slot},
    source::Source,
};

use super::Sizes;

/// One write to the maps. `control::plan` decides them; applying one twice changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// `BACKENDS[id] = backend`.
    SetBackend {
        /// Index.
        id: u32,
        /// Value.
        backend: Backend,
    },
    /// `BACKENDS[id]` is free again.
    ClearBackend {
        /// Index.
        id: u32,
    },
    /// A run of slots of `MAGLEV`, which no service points to yet.
    SetTable {
        /// First slot.
        start: u32,
        /// The slots.
        slots: Vec<Slot>,
    },
    /// Adds or replaces a service, in one atomic step.
    SetService {
        /// Key.
        key: ServiceKey,
        /// Value.
        service: Service,
    },
    /// Removes a service.
    RemoveService {
        /// Key.
        key: ServiceKey,
    },
    /// An entry of `SOURCES`.
    SetSource {
        /// Length of the prefix in bits.
        bits: u32,
        /// The prefix.
        source: Source,
        /// Value.
        verdict: u32,
    },
    /// Removes an entry of `SOURCES`.
    RemoveSource {
        /// Length of the prefix in bits.
        bits: u32,
        /// The prefix.
        source: Source,
    },
    /// The whole filter of floating addresses.
    SetVips {
        /// `VIPS`, all [`lb_common::limits::VIP_BYTES`] bytes.
        bytes: Vec<u8>,
    },
    /// The whole filter of services.
    SetPorts {
        /// `PORTS`, all [`lb_common::limits::PORTS_BYTES`] bytes.
        bytes: Vec<u8>,
    },
}

/// What a previous daemon left in the maps.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// Entries of `SERVICES`.
    pub services: Vec<(ServiceKey, Service)>,
    /// Entries of `BACKENDS` that are in use.
    pub backends: Vec<(u32, Backend)>,
    /// Room that the maps have.
    pub sizes: Sizes,
    /// Entries of `SOURCES`: prefix, its length in bits, value.
    pub sources: Vec<((Source, u32), u32)>,
    /// The tables of steered services.
    pub steered: BTreeMap<ServiceKey, Vec<Slot>>,
}
