//! The proxy's side of services: who listens, and what follows for the kernel's tables.

use super::Task;
use crate::{control::state::ServiceState, proxy::Followed};

impl Task {
    /// Has the proxy listen for the services that want it. New connections go to it where it does, and
    /// are forwarded by the kernel where it cannot.
    pub(super) fn listen(&mut self) {
        self.proxy_lacks = false;
        let outcome = self.proxy.follow(self.state.services());
        for (service, Followed { listens, wrong }) in outcome {
            self.proxy_lacks |= wrong.is_some();
            let proxy = self.state.service(&service).and_then(|it| it.config.proxy.clone());
            let mut effect = "it goes on with what it had";
            if let Some(proxy) = proxy {
                // The backends may not understand what its clients speak.
                let is_proxied = listens || proxy.is_only();
                self.state.set_listens(&service, is_proxied);
                if !listens {
                    effect = "nobody takes its connections";
                }
                if !is_proxied {
                    effect = "the kernel forwards its connections, and no request is retried";
                }
            }
            let wrong = wrong.map(|wrong| format!("{wrong}; {effect}"));
            self.fault(&format!("proxy of {service}"), wrong);
        }
    }

    /// Tries again what could not be listened on.
    pub(super) fn retry_listening(&mut self) {
        if self.proxy_lacks {
            self.listen();
        }
    }

    /// Tells if clients wait because no file is left for them.
    pub(super) fn count_files(&mut self) {
        let wrong = self.proxy.lacks_files();
        self.fault("open files", wrong);
    }

    /// Tells the proxy the verdicts.
    pub(super) fn tell_proxy(&self) {
        for service in self.state.proxied() {
            self.proxy.judge(service);
        }
    }

    /// Lets the kernel forward new connections, as the daemon ends. Those that it cannot wait for the
    /// next one.
    pub(super) async fn hand_to_kernel(&mut self) {
        let is_only = |service: &ServiceState| {
            service.config.proxy.as_ref().is_some_and(|proxy| proxy.is_only())
        };
        let kernels = self.state.proxied().filter(|service| !is_only(service));
        let names: Vec<_> = kernels.map(|service| service.config.name.clone()).collect();
        if names.is_empty() {
            return;
        }
        for name in names {
            self.state.set_listens(&name, false);
        }
        self.reconcile().await;
    }
}
