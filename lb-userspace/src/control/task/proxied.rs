//! The proxy's side of services: who listens, and what follows for the kernel's tables.

use super::Task;
use crate::control::plan::Proxied;

impl Task {
    /// Has the proxy listen for the services that want it. New connections go to it where it does, and
    /// are forwarded by the kernel where it cannot.
    pub(super) fn listen(&mut self) {
        self.proxy_lacks = false;
        let outcome = self.proxy.follow(self.state.services());
        for (service, wrong) in outcome {
            self.proxy_lacks |= wrong.is_some();
            let proxied = if wrong.is_some() { Proxied::Old } else { Proxied::New };
            let is_wanted =
                self.state.service(&service).is_some_and(|service| service.config.proxy.is_some());
            if is_wanted {
                self.state.set_proxied(&service, proxied);
            }
            let wrong = wrong.map(|wrong| {
                format!("{wrong}; the kernel forwards its connections, and no request is retried")
            });
            self.fault(&format!("proxy of {service}"), wrong);
        }
    }

    /// Tries again what could not be listened on.
    pub(super) fn retry_listening(&mut self) {
        if self.proxy_lacks {
            self.listen();
        }
    }

    /// Tells the proxy the verdicts.
    pub(super) fn tell_proxy(&self) {
        for service in self.state.proxied() {
            self.proxy.judge(service);
        }
    }

    /// Lets the kernel forward all new connections, as the daemon ends.
    pub(super) async fn hand_to_kernel(&mut self) {
        let names: Vec<_> =
            self.state.proxied().map(|service| service.config.name.clone()).collect();
        if names.is_empty() {
            return;
        }
        for name in names {
            self.state.set_proxied(&name, Proxied::Old);
        }
        self.reconcile().await;
    }
}
