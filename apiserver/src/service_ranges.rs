//! Ranges of addresses for Services, of both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use keelson_machinery::status::Status;

/// Lengths of prefixes that a range may have.
const BITS_OF_IPV4: std::ops::RangeInclusive<u32> = 8..=28;
const BITS_OF_IPV6: std::ops::RangeInclusive<u32> = 64..=124;
/// Where the address of the cluster's name server is in a range.
const NAMES: u128 = 10;

/// The family of an address, as the API names it.
pub fn family_of(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}

/// A range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    six: bool,
    base: u128,
    /// How many addresses it has.
    pub size: u128,
}

impl Range {
    /// Reads `10.96.0.0/16` or `fd00::/108`.
    pub fn parse(cidr: &str) -> Result<Self, Status> {
        let bad = || {
            let why = "is not an IPv4 range between /8 and /28 or an IPv6 range between /64 and /124";
            Status::internal(&format!("the service CIDR {cidr:?} {why}"))
        };
        let (ip, bits) = cidr.split_once('/').ok_or_else(bad)?;
        let (ip, bits): (IpAddr, u32) = (ip.parse().map_err(|_| bad())?, bits.parse().map_err(|_| bad())?);
        let (six, all, allowed, whole) = match ip {
            IpAddr::V4(ip) => (false, u128::from(u32::from(ip)), BITS_OF_IPV4, 32),
            IpAddr::V6(ip) => (true, u128::from(ip), BITS_OF_IPV6, 128),
        };
        if !allowed.contains(&bits) {
            return Err(bad());
        }
        let size = 1 << (whole - bits);
        Ok(Self { six, base: all & !(size - 1), size })
    }

    /// Its family, as the API names it.
    pub fn family(&self) -> &'static str {
        if self.six { "IPv6" } else { "IPv4" }
    }

    /// One of its addresses.
    pub fn address(&self, offset: u128) -> IpAddr {
        let number = self.base + offset;
        match self.six {
            true => Ipv6Addr::from(number).into(),
            // A range of this family ends below 2^32.
            false => Ipv4Addr::from(number as u32).into(),
        }
    }

    /// Whether a Service may have an address: it is in the range, and neither its first nor its last.
    pub fn offers(&self, ip: IpAddr) -> bool {
        let (six, number) = match ip {
            IpAddr::V4(ip) => (false, u128::from(u32::from(ip))),
            IpAddr::V6(ip) => (true, u128::from(ip)),
        };
        six == self.six && number > self.base && number - self.base < self.size - 1
    }
}

/// The ranges of a list such as `10.96.0.0/16,fd00::/108`: the first is of the family that Services have by default.
///
/// # Errors
/// Two ranges of one family, or more than two, and what is no range.
pub fn parse_all(list: &str) -> Result<Vec<Range>, Status> {
    let ranges = list.split(',').map(|cidr| Range::parse(cidr.trim())).collect::<Result<Vec<_>, _>>()?;
    let good = matches!(ranges[..], [_]) || matches!(ranges[..], [a, b] if a.six != b.six);
    let why = "names one range, or one of each family";
    if good { Ok(ranges) } else { Err(Status::internal(&format!("the service CIDR {list:?} {why}"))) }
}

/// The first address of the first range: the `kubernetes` Service's own.
pub fn first_address(list: &str) -> Option<IpAddr> {
    parse_all(list).ok().map(|ranges| ranges[0].address(1))
}

/// The tenth address of the first range: the cluster's name server; a range too small for it has none.
pub fn names_address(list: &str) -> Option<IpAddr> {
    let range = *parse_all(list).ok()?.first()?;
    (range.size > NAMES + 1).then(|| range.address(NAMES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_both_families() {
        for (list, families, first, names) in [
            ("10.0.0.7/24", vec!["IPv4"], "10.0.0.1", "10.0.0.10"),
            ("fd00:1::/112", vec!["IPv6"], "fd00:1::1", "fd00:1::a"),
            ("10.96.0.0/16,fd00::/108", vec!["IPv4", "IPv6"], "10.96.0.1", "10.96.0.10"),
            ("fd00::/108, 10.96.0.0/16", vec!["IPv6", "IPv4"], "fd00::1", "fd00::a"),
        ] {
            let ranges = parse_all(list).unwrap();
            assert_eq!(ranges.iter().map(Range::family).collect::<Vec<_>>(), families, "{list}");
            assert_eq!(first_address(list).unwrap().to_string(), first, "{list}");
            assert_eq!(names_address(list).unwrap().to_string(), names, "{list}");
        }
        for bad in ["10.0.0.0", "10.0.0.0/31", "fd00::/32", "x/24", "", "10.0.0.0/24,10.1.0.0/24", "10.0.0.0/24,"] {
            assert!(parse_all(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn first_and_last_are_not_offered() {
        let range = Range::parse("10.0.0.0/28").unwrap();
        for (ip, offered) in [
            ("10.0.0.0", false),
            ("10.0.0.1", true),
            ("10.0.0.14", true),
            ("10.0.0.15", false),
            ("10.0.0.16", false),
            ("::10.0.0.1", false),
        ] {
            assert_eq!(range.offers(ip.parse().unwrap()), offered, "{ip}");
        }
    }
}
