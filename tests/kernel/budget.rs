//! What the program costs the verifier and the instruction cache.

use lb_tests::kernel::Kernel;

/// Instructions that the verifier may look at. The kernel refuses at a million, and takes longer to load
/// the program the more there are; 370,000 on Linux 6.18 when this was written.
const MOST_VERIFIED: u32 = 460_000;

/// Bytes of the program after the kernel's rewriting, 8 for each instruction; 133,500 when this was
/// written.
const MOST_TRANSLATED_BYTES: u32 = 167_000;

const ADVICE: &str = "Find what has grown: `llvm-objdump -d` of the object shows each subprogram. A \
    check or look-up in a generic function is compiled for two families, and for each place that \
    inlines it; a loop's body is verified once for each pass unless it is a subprogram. If the growth \
    is worth it, raise the limit to a quarter above the new figure, and say in the commit what a \
    packet costs before and after (`cargo xtask bench`).";

#[test]
fn the_program_keeps_to_its_budget() -> anyhow::Result<()> {
    let program = Kernel::load(64)?.program()?;
    let verified = program.verified_instruction_count().expect("Linux 5.16 or newer counts");
    let bytes = program.size_translated().expect("root may see the size");
    assert!(
        verified <= MOST_VERIFIED,
        "the verifier looked at {verified} instructions, more than {MOST_VERIFIED}. {ADVICE}"
    );
    assert!(
        bytes <= MOST_TRANSLATED_BYTES,
        "the program has {bytes} bytes, more than {MOST_TRANSLATED_BYTES}. {ADVICE}"
    );
    // A limit far above the truth guards nothing.
    assert!(
        verified > MOST_VERIFIED / 2 && bytes > MOST_TRANSLATED_BYTES / 2,
        "the program has become much smaller ({verified} instructions verified, {bytes} bytes): \
         lower the limits to a quarter above these figures"
    );
    Ok(())
}
