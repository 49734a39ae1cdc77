//! How seats are shared out among levels that lend and borrow.

use super::level::Shape;

/// The seats of each level, from what each is expected to want: its own as far as it wants them; what is left of those that may
/// be lent goes to levels that want more, in proportion to their own seats.
pub(super) fn shared_out(levels: &[(Shape, f64)]) -> Vec<usize> {
    let wanted = |demand: f64| demand.ceil().max(1.0) as usize;
    // What a level keeps in any case, and the most that it may come to.
    let floor = |shape: &Shape| shape.seats.saturating_sub(shape.lends).max(1);
    let roof = |shape: &Shape| shape.borrows.map_or(usize::MAX, |more| shape.seats.saturating_add(more));
    let mut limits: Vec<usize> = levels
        .iter()
        .map(|(shape, demand)| wanted(*demand).clamp(floor(shape), shape.seats.max(floor(shape))))
        .collect();
    let total: usize = levels.iter().map(|(shape, _)| shape.seats).sum();
    let mut left = total.saturating_sub(limits.iter().sum());
    while left > 0 {
        let hungry: Vec<usize> =
            (0..levels.len()).filter(|i| limits[*i] < wanted(levels[*i].1).min(roof(&levels[*i].0))).collect();
        let weight: usize = hungry.iter().map(|i| levels[*i].0.seats.max(1)).sum();
        if hungry.is_empty() {
            break;
        }
        let round = left;
        for i in hungry {
            let (shape, demand) = &levels[i];
            let part = (round * shape.seats.max(1) / weight).max(1).min(left);
            let given = part.min(wanted(*demand).min(roof(shape)) - limits[i]);
            limits[i] += given;
            left -= given;
            if left == 0 {
                break;
            }
        }
    }
    // What nobody wants goes back to where it belongs, so that a level that wakes up has its own seats at once.
    for (limit, (shape, _)) in limits.iter_mut().zip(levels) {
        let given = left.min(shape.seats.saturating_sub(*limit));
        *limit += given;
        left -= given;
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(seats: usize, lends: usize, borrows: Option<usize>) -> Shape {
        Shape { uid: "u".into(), exempt: false, seats, lends, borrows, queues: None }
    }

    /// Each row: levels with their seats, what they may lend and borrow, and what they want; how many seats each gets.
    #[test]
    fn seats_are_lent_where_they_are_not_needed() {
        for (levels, expected) in [
            // Nobody wants more than is theirs: all keep their own.
            (vec![(10, 5, None, 3.0), (20, 0, None, 4.0)], vec![10, 20]),
            // One wants more: it gets what the other may lend, and no more.
            (vec![(10, 5, None, 1.0), (20, 0, None, 100.0)], vec![5, 25]),
            // What is needed at home is not lent.
            (vec![(10, 5, None, 8.0), (20, 0, None, 100.0)], vec![8, 22]),
            // A level may be kept from borrowing.
            (vec![(10, 10, None, 1.0), (20, 0, Some(3), 100.0)], vec![7, 23]),
            (vec![(10, 10, None, 1.0), (20, 0, Some(0), 100.0)], vec![10, 20]),
            // Two that borrow share in proportion to what they have.
            (vec![(30, 30, None, 0.0), (10, 0, None, 100.0), (20, 0, None, 100.0)], vec![1, 19, 40]),
        ] {
            let given: Vec<(Shape, f64)> = levels
                .iter()
                .map(|(seats, lends, borrows, demand)| (shape(*seats, *lends, *borrows), *demand))
                .collect();
            let got = shared_out(&given);
            let total = |list: &[usize]| list.iter().sum::<usize>();
            assert_eq!(total(&got), levels.iter().map(|level| level.0).sum::<usize>(), "no seat is lost: {got:?}");
            let close = got.iter().zip(&expected).all(|(a, b): (&usize, &usize)| a.abs_diff(*b) <= 1);
            assert!(close, "{levels:?}: {got:?}");
        }
    }
}
