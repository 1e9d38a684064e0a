//! What traces ask of the task: names for numbers.

use std::collections::BTreeMap;

use nix::net::if_::if_nameindex;

use super::Task;
use crate::{control::plan::service_key, trace::show::Names};

impl Task {
    /// Names of services, backends and interfaces.
    pub(super) fn trace_names(&self) -> Names {
        // Of all services: there is no name that could be unknown.
        let backends: BTreeMap<u32, String> =
            self.flow_names(None).unwrap_or_default().into_backends().collect();
        let services = self.state.services().iter().filter_map(|service| {
            let key = service_key(service.config.listen, service.config.protocol);
            let index = self.planner.service_index(&key)?;
            Some((index, (service.config.name.clone(), key)))
        });
        let service_of = backends.keys().filter_map(|&id| Some((id, self.planner.backend(id)?.0)));
        Names {
            services: services.collect(),
            service_of: service_of.collect(),
            backends,
            interfaces: interfaces(),
        }
    }
}

/// Names of the host's interfaces by index. Without them, a trace shows the indexes.
fn interfaces() -> BTreeMap<u32, String> {
    let Ok(all) = if_nameindex() else { return BTreeMap::new() };
    let named = all.iter().map(|it| (it.index(), it.name().to_string_lossy().into_owned()));
    named.collect()
}
