//! A fleet over a cluster of three NATS servers.

use crate::fleet::Nats;
use std::net::TcpListener;

/// Three NATS servers that keep each value three times.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Nats>,
}

/// Ports that were free a moment ago.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

impl Cluster {
    /// `None` where there is no NATS server.
    pub(crate) fn start() -> Option<Cluster> {
        let clients = free_ports::<6>();
        let (clients, peers) = clients.split_at(3);
        let routes: Vec<String> = peers.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let start = |(index, port): (usize, &u16)| {
            let name = format!("nats-{index}");
            let arguments = [
                "--server_name",
                &name,
                "--cluster_name",
                "test",
                "--cluster",
                &routes[index],
                "--routes",
                &routes.join(","),
            ];
            Nats::start_on(*port, arguments.map(str::to_owned).into())
        };
        let nodes: Option<Vec<Nats>> = clients.iter().enumerate().map(start).collect();
        Some(Cluster { nodes: nodes? })
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port).collect()
    }
}
