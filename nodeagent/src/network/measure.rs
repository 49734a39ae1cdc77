//! What a bench measures: so many Services with so many endpoints each, in one table of the packet filter.

use std::time::{Duration, Instant};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::netlink::Filter;
use super::nft;
use super::proxy::{Step, Table, carry_out};
use super::service::{Family, Site, contribution};
use super::sets::Change;

/// The table of one family with its Services.
pub struct Bench {
    table: Table,
    site: Site,
    filter: Option<Filter>,
}

impl Bench {
    /// An empty one; its changes go through `nft` alone if told so.
    pub fn new(only_nft: bool) -> std::io::Result<Self> {
        let filter = if only_nft { None } else { Some(Filter::open()?) };
        Ok(Self { table: Table::default(), site: Site { node: "n".into(), ..Site::default() }, filter })
    }

    fn take(&mut self, number: u32, endpoints: u32) -> serde_json::Result<Step> {
        let ip = |first: u32, n: u32| std::net::Ipv4Addr::from((first << 24) + n).to_string();
        let service = serde_json::from_value(json!({"spec": {"clusterIP": ip(20, number), "ports": [{"port": 80}]}}))?;
        let endpoints: Vec<_> = (0..endpoints).map(|e| json!({"addresses": [ip(10, number * 100 + e)]})).collect();
        let slice: EndpointSlice = serde_json::from_value(
            json!({"addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints}),
        )?;
        let wanted = contribution(Family::V4, &service, &[&slice], &self.site);
        let (mut change, mut chains) = (Change::default(), String::new());
        let key = ("n".to_owned(), number.to_string());
        self.table.take(Family::V4, &key, wanted, &mut change, &mut chains);
        let removed = self.table.unused(Family::V4);
        Ok(Step { family: Family::V4, change, chains, removed, whole: None })
    }

    /// Fills the table and gives it to the packet filter.
    pub async fn fill(&mut self, services: u32, endpoints: u32) -> std::io::Result<Duration> {
        let began = Instant::now();
        for number in 0..services {
            self.take(number, endpoints)?;
        }
        nft::apply(&self.table.whole(Family::V4, &["10.0.0.0/8".into()])).await?;
        Ok(began.elapsed())
    }

    /// Gives one Service another number of endpoints.
    pub async fn change(&mut self, number: u32, endpoints: u32) -> std::io::Result<Duration> {
        let began = Instant::now();
        let step = self.take(number, endpoints)?;
        carry_out(&[step], self.filter.as_ref()).await?;
        Ok(began.elapsed())
    }
}
