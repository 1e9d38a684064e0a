//! What belongs to the contract but not to this version: its values are checked all the same, so
//! that the file is right when the version comes.

use crate::config::{raw::File, report::Findings};

pub(super) fn check(file: &File, findings: &mut Findings) {
    if let Some(consensus) = file.consensus.value()
        && let Some(etcd) = consensus.etcd.get()
        && etcd.get_ref().is_empty()
    {
        findings
            .error(etcd.span(), "`etcd` is empty")
            .help("write the members' addresses, such as \"http://192.0.2.11:2379\"");
    }
}
