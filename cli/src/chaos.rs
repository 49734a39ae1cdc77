//! `keelson chaos`: the exit code says the verdict.

use anyhow::Result;
use keelson_chaos::ChaosArgs;

/// The exit code when something wrong was found; 1 is that the run could not be made.
const FAULTY: i32 = 2;

/// Runs it, or lists what there is.
pub async fn run(args: ChaosArgs) -> Result<()> {
    if args.list {
        print!("{}", keelson_chaos::list());
        return Ok(());
    }
    if args.world == keelson_chaos::World::Sim {
        return keelson_chaos::hand_over(&args);
    }
    if args.self_test {
        if !tokio::task::spawn_blocking(move || keelson_chaos::self_test(&args)).await?? {
            std::process::exit(FAULTY);
        }
        return Ok(());
    }
    // It has a runtime of its own for its clients, and waits for hosts in between.
    let report = tokio::task::spawn_blocking(move || keelson_chaos::run(&args)).await??;
    if !report.is_clean() {
        std::process::exit(FAULTY);
    }
    Ok(())
}
