//! The table of cases, through the loaded program.

use lb_tests::{kernel::Kernel, packets::table::cases};

#[test]
fn every_case_holds_in_the_kernel() -> anyhow::Result<()> {
    let mut kernel = Kernel::load(4096)?;
    let cases = cases();
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| case.run(&mut kernel).err())
        .map(|error| format!("{error:#}"))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} cases failed:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    Ok(())
}

/// Rows depend on their own configuration alone: in the other order they give the same.
#[test]
fn every_case_holds_in_any_order() -> anyhow::Result<()> {
    let mut kernel = Kernel::load(4096)?;
    for case in cases().iter().rev() {
        case.run(&mut kernel)?;
    }
    Ok(())
}
