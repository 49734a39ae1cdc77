//! `cargo bench -p keelson-nodeagent`: 10,000 Services with 10 endpoints each given to the kernel, then one endpoint that
//! goes and comes. In a network namespace of its own, which needs root.

use std::time::Duration;

use keelson_nodeagent::measure::Bench;

/// Services, and endpoints of each.
const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
/// Single changes.
const CHANGES: u32 = 200;

fn main() {
    if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        eprintln!("skipped: no network namespace can be made: {error}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // `-- nft`: every change through `nft`, to compare with.
        let only_nft = std::env::args().any(|argument| argument == "nft");
        let mut bench = Bench::new(only_nft).unwrap();
        let took = bench.fill(SERVICES, ENDPOINTS).await.unwrap();
        println!("{SERVICES} Services with {ENDPOINTS} endpoints each: {:.2} s", took.as_secs_f64());
        let mut changes: Vec<Duration> = Vec::new();
        for i in 0..CHANGES {
            changes.push(
                bench.change(i / 2 * 37 % SERVICES, if i % 2 == 0 { ENDPOINTS - 1 } else { ENDPOINTS }).await.unwrap(),
            );
        }
        changes.sort_unstable();
        let at = |part: usize| changes[changes.len() * part / 100].as_secs_f64() * 1000.0;
        println!("one endpoint: p50 {:.2} ms, p99 {:.2} ms", at(50), at(99));
    });
}
