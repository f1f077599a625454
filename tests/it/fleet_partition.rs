//! A gateway that the network separates from its fleet: nothing arrives and nothing is refused, as with a switch that died. In network namespaces of its
//! own, with the long form (`make fleet-chaos`).

use crate::fleet::Nats;
use crate::fleet_chaos::is_long;
use crate::support::process::{binary, onnxruntime};
use crate::support::{eventually, onnx};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

/// A network namespace, and what runs in it.
struct Network {
    /// Keeps the namespace.
    holder: Child,
    processes: Vec<Child>,
}

impl Network {
    /// `None` where this machine does not allow it.
    fn new() -> Option<Network> {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 600"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let out = holder.stdout.take();
        let network = Network { holder, processes: Vec::new() };
        let mut said = String::new();
        BufReader::new(out?).read_line(&mut said).ok()?;
        (said == "up\n").then_some(network)
    }

    /// A command in this network.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg(program);
        command
    }

    fn ip(&self, arguments: &str) -> bool {
        let output = self.command("ip").args(arguments.split(' ')).output();
        output.is_ok_and(|output| output.status.success())
    }

    fn spawn(&mut self, mut command: Command) {
        self.processes.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    /// Status and body of an answer to a request from inside.
    fn ask(&self, method: &str, url: &str, body: &str) -> Option<(u16, Value)> {
        let mut command = self.command("curl");
        command.args([
            "-s",
            "-m",
            "10",
            "-X",
            method,
            "-H",
            "content-type: application/json",
            "-w",
            "\n%{http_code}",
            url,
        ]);
        if !body.is_empty() {
            command.args(["-d", body]);
        }
        let text = String::from_utf8(command.output().ok()?.stdout).ok()?;
        let (body, status) = text.rsplit_once('\n')?;
        Some((status.parse().ok()?, serde_json::from_str(body).unwrap_or_default()))
    }

    fn get(&self, url: &str) -> Value {
        self.ask("GET", url, "").unwrap_or_default().1
    }

    /// A gateway whose data plane has this port, and its admin plane the next one.
    fn gateway(&mut self, dir: &Path, node: &str, port: u16) {
        for version in [1, 2] {
            onnx::install(&dir.join("models"), "m", version, &onnx::answering(version as f32, 4, 0));
        }
        let mut command = self.command(&binary());
        command
            .args([
                "serve",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--admin-listen",
                &format!("127.0.0.1:{}", port + 1),
            ])
            .args(["--models", "models", "--data-dir", "data", "--fleet", "nats://10.99.0.1:4222"])
            .current_dir(dir)
            .env("SLUICEGATE__FLEET__NODE", node)
            .env("SLUICEGATE__MODELS__SETTLE", "100ms")
            .env("ORT_DYLIB_PATH", onnxruntime());
        self.spawn(command);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().chain([&mut self.holder]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_gateway_that_the_network_separates_serves_and_catches_up() {
    let Some(nats) = Nats::program().filter(|_| is_long()) else { return };
    let (Some(mut here), Some(mut there)) = (Network::new(), Network::new()) else {
        eprintln!("this needs root and network namespaces: partitions are not tested");
        return;
    };
    let link = format!("link add toward type veth peer name away netns {}", there.holder.id());
    let is_linked = here.ip(&link)
        && here.ip("addr add 10.99.0.1/24 dev toward")
        && here.ip("link set toward up")
        && there.ip("addr add 10.99.0.2/24 dev away")
        && there.ip("link set away up");
    if !is_linked {
        eprintln!("this machine has no veth devices: partitions are not tested");
        return;
    }
    let dirs = [(); 4].map(|()| TempDir::new().unwrap());
    let mut server = here.command(nats.to_str().unwrap());
    server.args(["-a", "10.99.0.1", "-p", "4222", "-js", "-sd", dirs[0].path().to_str().unwrap()]);
    here.spawn(server);
    here.gateway(dirs[1].path(), "a", 8080);
    here.gateway(dirs[2].path(), "b", 8090);
    there.gateway(dirs[3].path(), "c", 8080);
    let admin = "http://127.0.0.1:8081";
    let promote = |network: &Network, version: &str| {
        let body = json!({"version": version, "reason": "a test"}).to_string();
        network.ask("POST", &format!("{admin}/api/v1/models/m:promote"), &body).unwrap_or_default()
    };
    let version = |network: &Network| -> Value {
        let body = crate::support::infer_body(&[1, 4], &[0.0; 4]);
        let (status, answer) =
            network.ask("POST", "http://127.0.0.1:8080/v2/models/m/infer", &body).unwrap_or_default();
        if status == 200 { answer["model_version"].clone() } else { Value::Null }
    };
    eventually("three gateways are ready", || {
        let nodes = here.get(&format!("{admin}/api/v1/fleet"))["nodes"].clone();
        let ready = |node: &&Value| node["state"] == "ready" && node["models"]["m"]["revision"].as_u64() > Some(0);
        (nodes.as_array()?.iter().filter(ready).count() == 3).then_some(())
    });
    eventually("version 1 is promoted", || (promote(&here, "1").0 == 200).then_some(()));
    eventually("the far one follows", || (version(&there) == "1").then_some(()));

    assert!(here.ip("link set toward down"));
    let cut = Instant::now();
    eventually("the other two go on", || (promote(&here, "2").0 == 200).then_some(()));
    println!("partition: a promotion without the separated gateway after {} ms", cut.elapsed().as_millis());
    eventually("the separated one says so", || {
        let warnings = there.get(&format!("{admin}/readyz"))["warnings"].to_string();
        warnings.contains("degraded").then_some(())
    });
    println!("partition: the separated gateway was degraded after {} ms", cut.elapsed().as_millis());
    assert_eq!(version(&there), "1", "it serves what it has");
    let (status, refused) = promote(&there, "2");
    assert_eq!(status, 503, "{refused}");
    eventually("the others see that it is lost", || {
        let nodes = here.get(&format!("{admin}/api/v1/fleet"))["nodes"].clone();
        nodes.as_array()?.iter().any(|node| node["name"] == "c" && node["state"] == "lost").then_some(())
    });

    assert!(here.ip("link set toward up"));
    let healed = Instant::now();
    eventually("it catches up", || (version(&there) == "2").then_some(()));
    println!("partition: it had caught up {} ms after the link was back", healed.elapsed().as_millis());
}
