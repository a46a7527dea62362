"""A Hub on this machine that runs Jobs: each is a real process, on a machine that has only a `uv` of its own. A forked
one skips what comes before the run is fetched, and importing anything.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fakehub
from fakehub import FakeHub
from forks import FORKS, Fork, job
from tiny_runs import kill

from dp.training.run_folder import RunFolder

fakehub.KINDS |= {
    "whoami": r"GET /api/whoami-v2",
    "delete": r"DELETE /api/repos/delete",
    "hardware": r"GET /api/jobs/hardware",
    "job": r"POST /api/jobs/(?P<user>\w+)",
    "inspect": r"GET /api/jobs/(?P<user>\w+)/(?P<job>\w+)",
    "cancel": r"POST /api/jobs/(?P<user>\w+)/(?P<job>\w+)/cancel",
    "logs": r"GET /api/jobs/(?P<user>\w+)/(?P<job>\w+)/logs",
}
GPU = {"type": "gpu", "model": "A10G", "quantity": "1", "vram": "24 GB", "manufacturer": "Nvidia"}
OFFERS = [("cpu-basic", None, 0.0002, "minute"), ("a10g-small", GPU, 1 / 60, "minute"), ("tpu", GPU, 3, "fortnight")]
UV = f"""#!/bin/sh
echo "uv $*"
case "$1" in venv) mkdir -p env/bin
printf '#!/bin/sh\\nexec {sys.executable} "$@"\\n' > env/bin/python
chmod +x env/bin/python ;; esac
"""


class FakeJobs(FakeHub):
    """jobs: id -> what was asked for and how it goes. has_machines: whether a Job starts at once, or waits for ever.
    uv: the program that a Job's machine has. is_forked: whether Jobs are forked.
    """

    is_forked = False

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.jobs, self.has_machines, self.uv = folder, {}, True, UV

    def close(self):
        for name in self.jobs:
            self.end(name, "CANCELED")
        super().close()

    def end(self, name: str, stage: str, message: str | None = None) -> None:
        """The machine is taken away, with all that runs on it."""
        job = self.jobs[name]
        job |= {"stage": stage, "message": message} if self.stage(job) in ("RUNNING", "SCHEDULING") else {}
        if job["process"]:
            if job["process"].poll() is None:
                os.killpg(job["process"].pid, signal.SIGKILL)
            job["process"].wait()
            for lock in job["folder"].glob("*/run/lock"):
                if (run := RunFolder(lock.parent)).is_alive():
                    kill(run)

    def stage(self, job) -> str:
        if job["stage"] == "RUNNING" and (code := job["process"].poll()) is not None:
            job["stage"] = "ERROR" if code else "COMPLETED"
        return job["stage"]

    # What answers each kind of request.

    def whoami(self, handler, body):
        if handler.token:
            return handler.answer(200, {"type": "user", "name": self.users[handler.token][0], "orgs": []})
        handler.answer(401, {"error": "?"})

    def delete(self, handler, body):
        wanted = json.loads(body)
        repo = f"{wanted['organization']}/{wanted['name']}"
        if self.may(handler, repo, write=True):
            del self.repos[repo]
            handler.answer(200, {})

    def hardware(self, handler, body):
        keys = ("name", "accelerator", "unitCostUSD", "unitLabel")
        more = {"prettyName": "?", "cpu": "2 vCPU", "ram": "16 GB", "unitCostMicroUSD": 1}
        handler.answer(200, [dict(zip(keys, offer)) | more for offer in OFFERS])

    def job(self, handler, body, user):
        spec, name = json.loads(body), f"job{len(self.jobs)}"
        folder = self.folder / name
        folder.mkdir(parents=True)
        self.jobs[name] = {"spec": spec, "folder": folder, "process": None, "stage": "SCHEDULING", "message": None}
        if self.has_machines:
            self.run(self.jobs[name])
        self.inspect(handler, b"", user, name)

    def run(self, facts):
        uv = facts["folder"] / "bin" / "uv"
        uv.parent.mkdir()
        uv.write_text(self.uv)
        uv.chmod(0o755)
        machine = {"PATH": f"{uv.parent}:/usr/bin:/bin", "TMPDIR": str(facts["folder"]), "HOME": str(facts["folder"])}
        machine |= {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "DP_DEVICE": "cpu", "CPU_CORES": "1"}
        machine |= facts["spec"]["environment"] | facts["spec"]["secrets"]
        with (facts["folder"] / "output").open("wb") as out:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            command, folder = facts["spec"]["command"], facts["folder"]
            if self.is_forked and FORKS:
                process = Fork(job, command[-1], self.url, stdout=out, environment=machine, cwd=folder)
            else:
                process = subprocess.Popen(command, env=machine, cwd=folder, start_new_session=True, **streams)
        facts |= {"process": process, "stage": "RUNNING", "since": time.time()}

    def inspect(self, handler, body, user, job):
        if job not in self.jobs or self.users[handler.token][0] != user:
            return handler.answer(404, {"error": "?"})
        facts, spec = self.jobs[job], self.jobs[job]["spec"]
        status = {"stage": self.stage(facts), "message": facts["message"]}
        said = {"id": job, "status": status, "owner": {"id": "1", "name": user, "type": "user"}}
        handler.answer(200, said | {key: spec.get(key) for key in ("dockerImage", "command", "flavor")})

    def cancel(self, handler, body, user, job):
        if self.users[handler.token][0] != user:
            return handler.answer(404, {"error": "?"})
        self.end(job, "CANCELED")
        handler.answer(200, {})

    def logs(self, handler, body, user, job):
        lines = (self.jobs[job]["folder"] / "output").read_text().splitlines()
        events = "".join(
            f"data: {json.dumps({'data': line, 'timestamp': '2026-01-01T00:00:00.000Z'})}\n\n" for line in lines
        )
        handler.answer(200, headers={"content-type": "text/event-stream"}, raw=events.encode())
