//! What the program costs the verifier and the instruction cache.

use ballast::dataplane::kernel;
use lb_tests::kernel::Kernel;

/// Instructions that the verifier may look at, from this kernel on: each has its own way to tell that it
/// has seen a state before. The kernel refuses at a million, and takes longer to load the program the
/// more there are; 303,000 on Linux 6.1 and 329,000 on 6.18 when this was written.
const MOST_VERIFIED: [((u32, u32), u32); 2] = [((6, 1), 375_000), ((6, 18), 395_000)];

/// Bytes of the program after the kernel's rewriting, 8 for each instruction; 190,300 when this was
/// written.
const MOST_TRANSLATED_BYTES: u32 = 232_000;

const ADVICE: &str = "Find what has grown: `llvm-objdump -d` of the object shows each subprogram. A \
    check or look-up in a generic function is compiled for two families, and for each place that \
    inlines it; a loop's body is verified once for each pass unless it is a subprogram. If the growth \
    is worth it, raise the limits to a quarter above the new figures (`cargo xtask test kernel vm`), and \
    say in the commit what a packet costs before and after (`cargo xtask bench`).";

#[test]
fn the_program_keeps_to_its_budget() -> anyhow::Result<()> {
    let program = Kernel::load(64)?.program()?;
    let verified = program.verified_instruction_count().expect("Linux 5.16 or newer counts");
    let bytes = program.size_translated().expect("root may see the size");
    println!("{verified} instructions verified, {bytes} bytes");
    let running = kernel::running().expect("a kernel with a number");
    let newest = MOST_VERIFIED.into_iter().rfind(|(since, _)| *since <= running);
    let (_, most_verified) = newest.expect("no kernel that is too old");
    assert!(
        verified <= most_verified,
        "the verifier looked at {verified} instructions, more than {most_verified}. {ADVICE}"
    );
    assert!(
        bytes <= MOST_TRANSLATED_BYTES,
        "the program has {bytes} bytes, more than {MOST_TRANSLATED_BYTES}. {ADVICE}"
    );
    // A limit far above the truth guards nothing.
    assert!(
        verified > most_verified / 2 && bytes > MOST_TRANSLATED_BYTES / 2,
        "the program has become much smaller ({verified} instructions verified, {bytes} bytes): \
         lower the limits to a quarter above these figures"
    );
    Ok(())
}
