//! The `ballast` binary.

/// The proxy asks for memory many times for each request, in sizes that come again: with glibc's
/// allocator a request costs more CPU time (decision 23).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ballast::cli::main()
}
