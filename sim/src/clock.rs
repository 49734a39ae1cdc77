//! Members' clocks, which tick a little faster or slower than the world's, and jump ahead.

use std::sync::atomic::{AtomicU64, Ordering};

use keelson_store::Clock;
use tokio::time::Instant;

/// The clock of one member. It never goes back.
pub struct Drifting {
    began: Instant,
    /// Ticks for each thousand of the world's.
    per_mille: AtomicU64,
    /// World's milliseconds at the last change of pace, and its own then.
    turn: parking_lot::Mutex<(u64, u64)>,
}

impl Drifting {
    /// A clock that begins now.
    pub fn new(per_mille: u64) -> Self {
        Self { began: Instant::now(), per_mille: per_mille.into(), turn: parking_lot::Mutex::new((0, 0)) }
    }

    fn world(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Jumps ahead, as when the machine was asleep.
    pub fn jump(&self, millis: u64) {
        let now = self.now_millis();
        *self.turn.lock() = (self.world(), now + millis);
    }

    /// Goes on at another pace.
    pub fn set_pace(&self, per_mille: u64) {
        let now = self.now_millis();
        *self.turn.lock() = (self.world(), now);
        self.per_mille.store(per_mille, Ordering::SeqCst);
    }
}

impl Clock for Drifting {
    fn now_millis(&self) -> u64 {
        let (world, own) = *self.turn.lock();
        own + (self.world() - world) * self.per_mille.load(Ordering::SeqCst) / 1000
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_drifts_and_jumps_ahead_only() {
        let clock = Drifting::new(1010);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(clock.now_millis(), 101_000);
        clock.set_pace(900);
        assert_eq!(clock.now_millis(), 101_000);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(clock.now_millis(), 110_000);
        clock.jump(5_000);
        assert_eq!(clock.now_millis(), 115_000);
    }
}
