"""Holds the files in deploy/ to the schemas of the tools that read them (tests/it/deploy.rs).

    deploy_files.py DEPLOY_DIR

The chart is rendered by Helm's own Go library (the package helm-python-sdk has it compiled), and each object is validated against the schemas
of the oldest and of a new Kubernetes. Prints what is wrong, one line each; else one line of JSON: the configuration of each rendering (the
file and the environment), which the test reads as the server does.
"""
import json
import sys
from pathlib import Path

import compose_spec
import jsonschema
import kubernetes_validate
import yaml

try:
    import helm_python
except ImportError:
    # There are no wheels for other machines than x86-64.
    helm_python = None

DEPLOY = Path(sys.argv[1])
CHART = DEPLOY / "helm" / "sluicegate"
KUBERNETES = ["1.25", "1.37"]
complaints = []


def check(condition, words):
    if not condition:
        complaints.append(words)


# Of objects that are not Kubernetes's own: the members that are used here, as their operators document them. Other members are refused.
def strict(properties, required=()):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
KEY = strict({"name": TEXT, "key": TEXT}, ["name", "key"])
META = {"type": "object", "required": ["name"]}
SCHEMAS = {
    # github.com/prometheus-operator, api-reference: ServiceMonitorSpec, Endpoint, SafeAuthorization, TLSConfig.
    ("monitoring.coreos.com/v1", "ServiceMonitor"): strict({
        "apiVersion": TEXT, "kind": TEXT, "metadata": META,
        "spec": strict({
            "jobLabel": TEXT,
            "selector": strict({"matchLabels": TEXTS}, ["matchLabels"]),
            "endpoints": {"type": "array", "minItems": 1, "items": strict({
                "port": TEXT, "path": TEXT, "interval": {"pattern": "^[0-9]+(ms|s|m|h)$"}, "scheme": {"enum": ["http", "https"]},
                "authorization": strict({"type": TEXT, "credentials": KEY}, ["credentials"]),
                "tlsConfig": strict({"serverName": TEXT, "ca": strict({"secret": KEY}, ["secret"])}),
            }, ["port"])},
        }, ["selector", "endpoints"]),
    }, ["spec"]),
    # PrometheusRuleSpec, RuleGroup, Rule.
    ("monitoring.coreos.com/v1", "PrometheusRule"): strict({
        "apiVersion": TEXT, "kind": TEXT, "metadata": META,
        "spec": strict({"groups": {"type": "array", "minItems": 1, "items": strict({
            "name": TEXT, "interval": TEXT,
            "rules": {"type": "array", "items": strict({
                "alert": TEXT, "record": TEXT, "expr": TEXT, "for": TEXT, "labels": TEXTS, "annotations": TEXTS,
            }, ["expr"])},
        }, ["name", "rules"])}}, ["groups"]),
    }, ["spec"]),
    # kserve.github.io, reference/api: ServingRuntimeSpec. Containers and volumes are validated as those of a pod.
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime"): strict({
        "apiVersion": TEXT, "kind": TEXT, "metadata": META,
        "spec": strict({
            "annotations": TEXTS, "labels": TEXTS, "volumes": {"type": "array"}, "containers": {"type": "array", "minItems": 1},
            "protocolVersions": {"type": "array", "items": {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}},
            "supportedModelFormats": {"type": "array", "minItems": 1, "items": strict(
                {"name": TEXT, "version": TEXT, "autoSelect": {"type": "boolean"}, "priority": {"type": "integer", "minimum": 1}}, ["name"])},
        }, ["containers", "supportedModelFormats"]),
    }, ["spec"]),
}


def validate(name, document):
    """Against the schema of its kind; unknown members are errors."""
    own = SCHEMAS.get((document.get("apiVersion"), document.get("kind")))
    try:
        if own:
            jsonschema.validate(document, own)
        else:
            for version in KUBERNETES:
                kubernetes_validate.validate(document, version, strict=True)
    except Exception as error:
        complaints.append(f"{name}: {document.get('kind')}: {str(error).splitlines()[0]}")


def check_pod(name, spec):
    """The rules of the Pod Security Standard `restricted`, and references that a schema does not see."""
    pod = spec.get("securityContext", {})
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        own = container.get("securityContext", {})
        both = {**pod, **own}
        check(both.get("runAsNonRoot") is True and both.get("runAsUser") != 0, f"{name}: may run as root")
        check(both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"), f"{name}: no seccomp profile")
        check(own.get("allowPrivilegeEscalation") is False, f"{name}: may gain privileges")
        check(own.get("capabilities", {}).get("drop") == ["ALL"], f"{name}: keeps capabilities")
        check(own.get("readOnlyRootFilesystem") is True, f"{name}: writes to its image")
        check("requests" in container["resources"] and "memory" in container["resources"]["limits"], f"{name}: no resources")
        ports = {port.get("name", port["containerPort"]) for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "httpGet" in container.get(probe, {}):
                check(container[probe]["httpGet"]["port"] in ports, f"{name}: {probe} names a port that is not there")
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for volume in volumes.values():
        kinds = set(volume) - {"name"}
        check(kinds <= allowed, f"{name}: the volume {volume['name']} is of a kind that is not allowed: {kinds}")
    return volumes


def check_stateful_set(name, document, objects):
    spec, template = document["spec"], document["spec"]["template"]
    pod = template["spec"]
    volumes = set(check_pod(name, pod)) | {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    container = pod["containers"][0]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    check(set(mounts) == volumes, f"{name}: volumes {sorted(volumes)}, mounts {sorted(mounts)}")
    check({"data": "/srv/sluicegate/data", "models": "/srv/sluicegate/models"}.items() <= mounts.items(), f"{name}: {mounts}")
    labels = template["metadata"]["labels"]
    selectors = [spec["selector"]["matchLabels"]]
    for other in objects:
        if other["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            selectors.append((other["spec"].get("selector") or other["spec"].get("podSelector"))["matchLabels"])
        if other["kind"] == "Service":
            selectors.append(other["spec"]["selector"])
            ports = {port["name"] for port in container["ports"]}
            for port in other["spec"]["ports"]:
                check(port["targetPort"] in ports, f"{name}: a Service names the port {port['targetPort']}")
        if other["kind"] == "ServiceMonitor":
            matching = [service for service in objects if service["kind"] == "Service"
                        and other["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()]
            ports = [port["name"] for service in matching for port in service["spec"]["ports"]]
            check(ports == [other["spec"]["endpoints"][0]["port"]], f"{name}: the ServiceMonitor finds the ports {ports}")
            check(matching[0]["metadata"]["labels"][other["spec"]["jobLabel"]] == "sluicegate", f"{name}: the job has another name")
    for selector in selectors:
        check(selector.items() <= labels.items(), f"{name}: {selector} does not select the pods: {labels}")
    check(any(service["kind"] == "Service" and service["metadata"]["name"] == spec["serviceName"] for service in objects),
          f"{name}: serviceName names no Service")
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    grace = int(environment["SLUICEGATE__SERVER__SHUTDOWN_GRACE"].removesuffix("s"))
    sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    # The supervisor kills the server 5 s after its grace (docs/SUPERVISOR.md).
    check(pod["terminationGracePeriodSeconds"] >= sleep + grace + 5, f"{name}: the pod is killed before it has stopped")
    return environment


TOKENS = {"existingSecret": "gateway-tokens", "tokens": [
    {"name": "root", "role": "admin", "key": "root"},
    {"name": "prometheus", "role": "viewer", "key": "metrics"},
    {"name": "anna", "role": "operator", "key": "anna", "models": ["fraud-*", "iris"]},
]}
EVERYTHING = {
    "replicas": 3, "image": {"digest": "sha256:" + "0" * 64}, "imagePullSecrets": [{"name": "registry"}], "fullnameOverride": "gateway",
    "config": "[log]\nformat = \"json\"\n[callers]\nrate = 100\n", "extraEnv": [{"name": "SLUICEGATE__MODELS__SETTLE", "value": "2s"}],
    "models": {"existingClaim": "models", "readOnly": True}, "data": {"storageClass": "fast", "size": "100Gi", "whenScaled": "Delete"},
    "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}}, "admin": {"port": 9443, "allowedHosts": ["ops.example"]},
    "access": TOKENS, "tls": {"serverSecret": "server-cert", "adminSecret": "admin-cert"}, "probes": {"exec": True},
    "shutdown": {"preStopSeconds": 10, "graceSeconds": 40}, "podDisruptionBudget": {"maxUnavailable": "25%"},
    "autoscaling": {"enabled": True, "queueDepth": 8}, "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True}, "dashboards": {"enabled": True},
    "networkPolicy": {"from": [{"podSelector": {}}], "adminFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "serviceAccount": {"annotations": {"role": "x"}}, "podAnnotations": {"a": "b"}, "podLabels": {"team": "ml"},
    "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "ml", "operator": "Exists"}], "priorityClassName": "high",
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}],
    "affinity": {"nodeAffinity": {}},
}
RENDERINGS = {
    "defaults": {},
    "everything": EVERYTHING,
    "for a test": {"data": {"persistent": False}, "models": {"volume": {"emptyDir": {}}}, "networkPolicy": {"enabled": False},
                   "podDisruptionBudget": {"enabled": False}, "serviceAccount": {"create": False}},
    "tokens": {"access": TOKENS, "serviceMonitor": {"enabled": True}},
}
REFUSED = [
    ({"replica": 2}, "replica"),
    ({"data": {"size": "much"}}, "size"),
    ({"access": {"tokens": TOKENS["tokens"]}}, "access.existingSecret"),
    ({"access": {"existingSecret": "x", "tokens": [{"name": "a", "role": "root", "key": "k"}]}}, "role"),
    ({"serviceMonitor": {"enabled": True}}, "serviceMonitor needs"),
    ({"models": {"existingClaim": "a", "volume": {"emptyDir": {}}}}, "set one of them"),
    ({"admin": {"port": 8080}}, "port"),
    ({"shutdown": {"graceSeconds": 0}}, "graceSeconds"),
]


def helm():
    report = helm_python.lint(str(CHART))
    for message in report["messages"]:
        check(message["severity"] < 2, f"helm lint: {message}")
    configurations = {}
    with helm_python.Chart.load(str(CHART)) as chart:
        for name, values in RENDERINGS.items():
            manifests = chart.render(values, name="demo", namespace="ml")
            objects = [document for path, text in manifests.items() if path.endswith(".yaml")
                       for document in yaml.safe_load_all(text) if document]
            for document in objects:
                validate(name, document)
            kinds = [document["kind"] for document in objects]
            only = {document["kind"]: document for document in objects}
            environment = check_stateful_set(name, only["StatefulSet"], objects)
            files = [document["data"]["sluicegate.toml"] for document in objects if "sluicegate.toml" in document.get("data", {})]
            configurations[name] = {"file": files[0], "environment": environment}
            if name == "everything":
                for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor", "PrometheusRule"):
                    check(kinds.count(kind) == 1, f"{kind}: {kinds.count(kind)} objects")
                rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
                check(only["PrometheusRule"]["spec"] == rules, "the rules of the chart are not those of deploy/prometheus")
                boards = {key: text for document in objects if "dashboard" in document["metadata"]["name"]
                          for key, text in document["data"].items()}
                files = {f"sluicegate-{path.name}": json.loads(path.read_text()) for path in (DEPLOY / "grafana").glob("*.json")}
                check({key: json.loads(text) for key, text in boards.items()} == files, "the dashboards are not those of deploy/grafana")
        for values, words in REFUSED:
            try:
                chart.render(values, name="demo", namespace="ml")
                complaints.append(f"values are accepted: {values}")
            except helm_python.HelmError as error:
                check(words in str(error), f"{values}: the error does not say {words!r}: {error}")
    return configurations


def kserve():
    document = yaml.safe_load((DEPLOY / "kserve" / "clusterservingruntime.yaml").read_text())
    validate("kserve", document)
    spec = {key: document["spec"][key] for key in ("containers", "volumes")}
    validate("kserve, as a pod", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}, "spec": spec})
    volumes = check_pod("kserve", spec)
    check({mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == set(volumes), "kserve: volumes and mounts differ")


def compose():
    path = DEPLOY / "compose" / "compose.yaml"
    try:
        compose_spec.PyCompose.from_yaml(path.read_text()).validate()
    except Exception as error:
        complaints.append(f"compose: {error}")
    document = yaml.safe_load(path.read_text())
    for name, service in document["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            exists = (path.parent / source).exists() if source.startswith(".") else source in document["volumes"]
            check(exists, f"compose: {name}: there is no volume {source}")
        for port in service.get("ports", []):
            check(port.startswith("127.0.0.1:"), f"compose: {name}: the port {port} is open to other machines")
    environment = document["services"]["sluicegate"]["environment"]
    return {"compose": {"file": (DEPLOY / "image" / "sluicegate.toml").read_text(), "environment": environment}}


configurations = {}
if helm_python:
    configurations.update(helm())
else:
    print("helm-python-sdk is not installed: the chart is not rendered", file=sys.stderr)
kserve()
configurations.update(compose())
for path in [*DEPLOY.glob("compose/**/*.yml")]:
    check(isinstance(yaml.safe_load(path.read_text()), dict), f"{path} is not YAML")
if complaints:
    sys.exit("\n".join(complaints))
print(json.dumps(configurations))
