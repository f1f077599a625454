"""Carries out the last stage of the Dockerfile and starts what it says, as a container would (tests/it/deploy.rs).

    image.py REPOSITORY BINARY

Runs as root in mount, network and process namespaces of its own (unshare). The base image is the file system of this machine under an overlay,
so that nothing is downloaded: apt-get and localedef are replaced by programs that do nothing. Prints "ok".
"""
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

REPOSITORY, BINARY = Path(sys.argv[1]), Path(sys.argv[2])
# What the first stage leaves behind, as paths here.
BUILT = {
    "/src/target/dist/out/sluicegate": BINARY,
    "/src/.ort/": REPOSITORY / ".ort",
    "/src/": REPOSITORY,
}


def instructions(text):
    """The instructions of the last stage, each as its name and its text."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith("FROM ")]
    return [tuple(line.split(None, 1)) for line in lines[starts[-1]:]]


class Image:
    def __init__(self, work):
        self.root = work / "image"
        self.user, self.directory = "0", "/"
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.volumes, self.settings = [], {}
        overlay(work, "/", self.root, "layer")
        mount("--rbind", "/dev", str(self.root / "dev"))
        # An empty /srv and /usr/local, as in a base image.
        for path in ("srv", "usr/local"):
            mount("-t", "tmpfs", "tmpfs", str(self.root / path))
        for path in ("usr/local/bin", "usr/local/lib", "usr/local/share"):
            (self.root / path).mkdir()
        for program in ("apt-get", "localedef"):
            stub = self.root / "usr/local/bin" / program
            stub.write_text("#!/bin/sh\nexit 0\n")
            stub.chmod(0o755)
        (self.root / "etc/passwd").write_text(without_user((self.root / "etc/passwd").read_text()))
        (self.root / "etc/group").write_text(without_user((self.root / "etc/group").read_text()))

    def from_(self, text):
        assert text == "debian:bookworm-slim", text

    def command(self, arguments, **options):
        """In the image, as its user and in its directory."""
        spec = ["chroot", f"--userspec={self.user}:{group_of(self.root, self.user)}", str(self.root),
                "/bin/sh", "-c", 'cd "$0" && exec "$@"', self.directory, *arguments]
        return subprocess.Popen(spec, env={**self.environment, **options.pop("env", {})}, **options)

    def run_step(self, text):
        assert self.command(["/bin/sh", "-c", text]).wait() == 0, f"RUN {text}"

    def copy(self, text):
        words = text.split()
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        *sources, target = [word for word in words if not word.startswith("--")]
        target_path = self.root / target.lstrip("/")
        for source in sources:
            if options.get("from") == "build":
                prefix, base = next((prefix, base) for prefix, base in BUILT.items() if source.startswith(prefix))
                path = base / source[len(prefix):] if prefix != source else base
            else:
                assert "from" not in options and not ignored(source), f".dockerignore leaves {source} out"
                path = REPOSITORY / source
            assert path.exists(), f"COPY {text}: there is no {path}"
            to = target_path / path.name if target.endswith("/") else target_path
            to.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, to, dirs_exist_ok=True)
            else:
                shutil.copy(path, to)
            owner = options.get("chown", "0")
            subprocess.run(["chroot", str(self.root), "chown", "-R", owner, "/" + str(to.relative_to(self.root))], check=True)

    def user_step(self, text):
        assert re.fullmatch("[1-9][0-9]*", text), f"USER {text}: Kubernetes needs the number of a user that is not root"
        self.user = text

    def workdir(self, text):
        self.directory = text

    def env(self, text):
        name, value = text.split("=", 1)
        self.environment[name] = value

    def volume(self, text):
        self.volumes.append(text)

    def expose(self, text):
        self.settings["EXPOSE"] = text.split()

    def healthcheck(self, text):
        self.settings["HEALTHCHECK"] = json.loads(text.split("CMD", 1)[1])

    def stopsignal(self, text):
        self.settings["STOPSIGNAL"] = getattr(signal, text)

    def entrypoint(self, text):
        self.settings["ENTRYPOINT"] = json.loads(text)

    def cmd(self, text):
        self.settings["CMD"] = json.loads(text)


STEPS = {"FROM": "from_", "RUN": "run_step", "USER": "user_step"}


def without_user(text):
    return "".join(line + "\n" for line in text.splitlines() if not line.startswith("sluicegate:") and ":10001:" not in line)


def group_of(root, user):
    for line in (root / "etc/passwd").read_text().splitlines():
        fields = line.split(":")
        if fields[2] == user:
            return fields[3]
    return "0"


def ignored(source):
    patterns = (REPOSITORY / ".dockerignore").read_text().split()
    return any(source == pattern or source.startswith(pattern + "/") for pattern in patterns)


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


def overlay(work, lower, at, name):
    upper, other = work / f"{name}.upper", work / f"{name}.work"
    for path in (upper, other, at):
        path.mkdir()
    upper.chmod(0o755)
    mount("-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={other}", str(at))


def loopback_up():
    with socket.socket() as sock:
        request = struct.pack("16sh", b"lo", 0x1 | 0x40)
        fcntl.ioctl(sock, 0x8914, request + bytes(24 - len(request)))


class Container:
    """A container of the image, with a volume that outlives it."""

    def __init__(self, image, volume, arguments, read_only=False):
        self.image = image
        at = image.root / image.volumes[0].lstrip("/")
        mount("--bind", str(volume), str(at))
        mount("-t", "proc", "proc", str(image.root / "proc"))
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(image.root / "tmp"))
        self.mounts = [at, image.root / "proc", image.root / "tmp"]
        if read_only:
            for path in (image.root, image.root / "srv", image.root / "usr/local"):
                mount("-o", "remount,bind,ro", str(path))
        # In a process namespace of its own, where the entry point is process 1.
        spec = ["unshare", "--pid", "--fork", "--kill-child", f"--mount-proc={image.root}/proc", "chroot",
                f"--userspec={image.user}:{group_of(image.root, image.user)}", str(image.root),
                "/bin/sh", "-c", 'cd "$0" && exec "$@"', image.directory, *image.settings["ENTRYPOINT"], *arguments]
        self.process = subprocess.Popen(spec, env=image.environment)

    def healthy(self):
        return self.image.command(self.image.settings["HEALTHCHECK"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait() == 0

    def wait_healthy(self):
        until = time.monotonic() + 60
        while not self.healthy():
            assert self.process.poll() is None, f"the container ended with the code {self.process.returncode}"
            assert time.monotonic() < until, "the health check does not pass within 60 s"
            time.sleep(0.05)

    def execute(self, *arguments):
        process = self.image.command(arguments, stdout=subprocess.PIPE)
        out = process.communicate(timeout=30)[0].decode()
        assert process.returncode == 0, f"{arguments}: {out}"
        return out

    def main_process(self):
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def stop(self):
        """As `docker stop`, which waits for 10 s."""
        begun = time.monotonic()
        os.kill(self.main_process(), self.image.settings["STOPSIGNAL"])
        code = self.process.wait(timeout=10)
        assert code == 0, f"exit code {code} after STOPSIGNAL"
        for path in self.mounts:
            subprocess.run(["umount", str(path)], check=True)
        return time.monotonic() - begun


def predict():
    body = json.dumps({"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [6.7, 3.0, 5.2, 2.3]}]})
    request = urllib.request.Request("http://127.0.0.1:8080/v2/models/iris/infer", body.encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)["model_version"]


def as_sagemaker():
    """The container contract: /ping answers 200 when the model does, and /invocations predicts, both at port 8080."""
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen("http://127.0.0.1:8080/ping", timeout=2) as answer:
                assert (answer.status, answer.read()) == (200, b"")
                break
        except urllib.error.URLError as error:
            assert time.monotonic() < until, f"/ping: {error}"
            time.sleep(0.05)
    for media, body in (("text/csv", "6.7,3.0,5.2,2.3\n"), ("application/json", '{"instances": [[6.7, 3.0, 5.2, 2.3]]}')):
        request = urllib.request.Request("http://127.0.0.1:8080/invocations", body.encode(), {"content-type": media})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer)["predictions"], media


def main(work):
    # The overlay's own files must not lie below the directory that it covers.
    mount("-t", "tmpfs", "tmpfs", str(work))
    loopback_up()
    image = Image(work)
    for name, text in instructions((REPOSITORY / "Dockerfile").read_text()):
        getattr(image, STEPS.get(name, name.lower()))(text)
    assert len(image.volumes) == 1 and image.settings["EXPOSE"] == ["8080"], image.settings
    owner = (image.root / image.volumes[0].lstrip("/")).stat() if (image.root / image.volumes[0].lstrip("/")).exists() else None
    # A new volume takes over the owner, the mode and the files of the directory in the image, and is root's where there is none.
    volume = work / "volume"
    volume.mkdir(mode=0o755)
    if owner:
        os.chown(volume, owner.st_uid, owner.st_gid)
        volume.chmod(owner.st_mode & 0o7777)
    else:
        (image.root / image.volumes[0].lstrip("/")).mkdir(parents=True)

    container = Container(image, volume, image.settings["CMD"])
    container.wait_healthy()
    version = predict()
    other = {"1": "2", "2": "1"}[version]
    container.execute("sluicegate", "promote", "iris", other, "--reason", "a test")
    assert predict() == other
    took = container.stop()
    assert not container.healthy(), "without a server the health check fails"

    # Another container with the same volume, as SageMaker starts it: the argument `serve`, and a model that was unpacked into /opt/ml/model. Its file system
    # cannot be written, as the chart has it.
    shutil.copytree(REPOSITORY / "models/iris", image.root / "opt/ml/model/iris")
    image.environment |= {"SLUICEGATE__MODELS__DIR": "/opt/ml/model", "SLUICEGATE__SERVING__DEFAULT_MODEL": "iris"}
    container = Container(image, volume, ["serve"], read_only=True)
    as_sagemaker()
    container.wait_healthy()
    assert predict() == other, "the traffic document is in the volume"
    assert "a test" in container.execute("sluicegate", "audit", "--model", "iris")
    container.stop()
    assert list(volume.glob("predictions/**/*.parquet")), "the prediction log is sealed at a stop"
    print(f"ok: stopped after {took:.1f} s")


with tempfile.TemporaryDirectory() as directory:
    try:
        main(Path(directory))
    finally:
        subprocess.run(["umount", "-l", directory], check=False)
