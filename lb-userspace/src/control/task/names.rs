//! Names for the numbers of the kernel's tables.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::Duration,
};

use lb_common::event::Event;

use super::Task;
use crate::{
    clock,
    control::{sampled::SampledFlow, state::ServiceState, status::NamedFlow},
    dataplane::Flow,
};

/// Names by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) services: BTreeMap<u32, String>,
    pub(super) backends: BTreeMap<u32, String>,
}

/// What a list of connections calls them.
#[derive(Debug, Default)]
pub(super) struct FlowNames {
    /// The names of the services that are listed.
    services: Vec<String>,
    /// By identifier: the place of the service in `services`, and the backend's name.
    backends: HashMap<u32, (usize, String)>,
    /// Backends that are configured no longer, by their address; none if one service is asked for.
    retiring: HashMap<u32, String>,
    /// Only connections of `backends` are listed.
    pub(super) only: bool,
    /// The flows of steered services, the busiest first; their backends, which see the client's own
    /// address.
    sampled: Vec<(SampledFlow, Option<SocketAddr>)>,
    /// When these were taken, on the monotonic clock.
    at: Duration,
}

impl FlowNames {
    /// Whether connections of this backend are listed.
    pub(super) fn wants(&self, backend: u32) -> bool {
        !self.only || self.backends.contains_key(&backend)
    }

    /// A connection with its names.
    pub(super) fn name(&self, flow: Flow) -> NamedFlow {
        let known = self.backends.get(&flow.backend_id);
        let service = known.map(|&(service, _)| self.services[service].clone());
        let backend = known.map(|(_, name)| name).or_else(|| self.retiring.get(&flow.backend_id));
        NamedFlow {
            service,
            backend_name: backend.cloned(),
            sampled: false,
            packets_per_second: None,
            flow,
        }
    }

    /// What samples tell, in the form of other flows.
    pub(super) fn sampled(&self) -> impl Iterator<Item = NamedFlow> {
        let wanted = self.sampled.iter().filter(|(flow, _)| self.wants(flow.backend_id));
        wanted.map(|(flow, backend)| {
            let named = self.name(Flow {
                protocol: flow.protocol,
                client: flow.client,
                listen: flow.listen,
                nat: flow.client,
                backend: backend.unwrap_or(flow.listen),
                backend_id: flow.backend_id,
                phase: "sampled".into(),
                idle_ms: self.at.saturating_sub(flow.last).as_millis() as u64,
                forward_packets: flow.packets,
                forward_bytes: flow.bytes,
                return_packets: 0,
                return_bytes: 0,
            });
            let packets_per_second = Some(flow.packets_per_second.round() as u64);
            NamedFlow { sampled: true, packets_per_second, ..named }
        })
    }

    /// All names of backends by their identifiers.
    pub(super) fn into_backends(self) -> impl Iterator<Item = (u32, String)> {
        let configured = self.backends.into_iter().map(|(id, (_, name))| (id, name));
        configured.chain(self.retiring)
    }
}

impl Task {
    /// Names of the services and backends that these records are about. Backends that are configured
    /// no longer are called by their address.
    pub(super) fn names_in(&self, events: &[Event]) -> Names {
        let mut names = Names::default();
        let services: HashMap<u32, &ServiceState> = self
            .state
            .services()
            .iter()
            .filter_map(|service| Some((self.index(service)?, service)))
            .collect();
        for event in events {
            if let Some(service) = services.get(&event.service) {
                names.services.insert(event.service, service.config.name.clone());
            }
            let Some((index, address)) = self.planner.backend(event.backend) else { continue };
            let record = services.get(&index).and_then(|service| {
                service.records.iter().find(|record| record.config.address == address)
            });
            let name = record.map(|record| record.config.name.clone());
            names.backends.insert(event.backend, name.unwrap_or_else(|| address.to_string()));
        }
        names
    }

    /// The names of a configured backend and of its service, the latter first.
    pub(super) fn backend_name(&self, id: u32) -> Option<(String, String)> {
        let (index, address) = self.planner.backend(id)?;
        let services = self.state.services().iter();
        let service = services.into_iter().find(|service| self.index(service) == Some(index))?;
        let record = service.records.iter().find(|record| record.config.address == address)?;
        Some((service.config.name.clone(), record.config.name.clone()))
    }

    /// Names for a list of connections, of one service if it is named. The error has the names that
    /// there are.
    pub(super) fn flow_names(&self, service: Option<&str>) -> Result<FlowNames, Vec<String>> {
        let listed: Vec<&ServiceState> = match service {
            None => self.state.services().iter().collect(),
            Some(name) => vec![self.state.service(name).ok_or_else(|| {
                self.state.services().iter().map(|it| it.config.name.clone()).collect::<Vec<_>>()
            })?],
        };
        let sampled = self.sampled.flows().into_iter();
        let with_backend = sampled.map(|flow| {
            let backend = self.planner.backend(flow.backend_id).map(|(_, address)| address);
            (flow, backend)
        });
        let mut names = FlowNames {
            only: service.is_some(),
            sampled: with_backend.collect(),
            at: clock::monotonic(),
            ..FlowNames::default()
        };
        if service.is_none() {
            let retiring = self.planner.retiring();
            names.retiring = retiring.map(|it| (it.id, it.address.to_string())).collect();
        }
        for (at, service) in listed.into_iter().enumerate() {
            names.services.push(service.config.name.clone());
            let Some(index) = self.index(service) else { continue };
            names.backends.extend(service.records.iter().filter_map(|record| {
                let id = self.planner.id(index, record.config.address)?;
                Some((id, (at, record.config.name.clone())))
            }));
        }
        Ok(names)
    }

    /// The identifiers of the backends of this name, in one service if it is named. One that is
    /// configured no longer is called by its address. The error says which there are.
    pub(super) fn backend_ids(
        &self,
        backend: &str,
        service: Option<&str>,
    ) -> Result<BTreeSet<u32>, String> {
        let names = self.flow_names(service).map_err(|known| {
            let name = service.unwrap_or_default();
            format!("no service is called {name}; there are: {}", known.join(", "))
        })?;
        let configured = names.backends.iter().map(|(id, (_, name))| (*id, name));
        let all = || configured.clone().chain(names.retiring.iter().map(|(id, name)| (*id, name)));
        let ids: BTreeSet<u32> =
            all().filter(|(_, name)| *name == backend).map(|(id, _)| id).collect();
        if ids.is_empty() {
            let known: BTreeSet<&str> = all().map(|(_, name)| name.as_str()).collect();
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            let of = service.map(|name| format!(" of {name}")).unwrap_or_default();
            return Err(format!("no backend{of} is called {backend}; there are: {known}"));
        }
        Ok(ids)
    }

    /// The names of the services of these backends, by their identifiers.
    pub(super) fn service_names(
        &self,
        backends: impl Iterator<Item = u32>,
    ) -> BTreeMap<u32, String> {
        let names: HashMap<u32, &str> = self
            .state
            .services()
            .iter()
            .filter_map(|service| Some((self.index(service)?, service.config.name.as_str())))
            .collect();
        let name = |id: u32| {
            let (index, _) = self.planner.backend(id)?;
            Some((id, (*names.get(&index)?).to_owned()))
        };
        backends.filter_map(name).collect()
    }
}
