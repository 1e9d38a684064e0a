//! What belongs to the contract but not to this version: its values are checked all the same, so
//! that the file is right when the version comes.

use std::ops::Range;

use crate::config::{raw::File, report::Findings, value::word::AlertKind};

pub(super) fn check(file: &File, findings: &mut Findings) {
    for alert in file.alert.items() {
        let (span, alert) = (alert.span(), alert.get_ref());
        if alert.kind.value() == Some(&AlertKind::Telegram) {
            if alert.token_file.is_absent() {
                telegram(span.clone(), "token_file", "/etc/ballast/telegram.token", findings);
            }
            if alert.chat_id.is_absent() {
                telegram(span, "chat_id", "-100123", findings);
            }
        }
    }
}

fn telegram(span: Range<usize>, key: &str, example: &str, findings: &mut Findings) {
    findings
        .error(span, format!("an alert by telegram needs `{key}`"))
        .help(format!("add `{key} = \"{example}\"`"));
}
