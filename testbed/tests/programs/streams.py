"""Opens every kind of stream to a pod with the official client: exec with input and an exit code, much output, attach, port
forwarding, a log that is followed. Arguments: the kubeconfig and the pod."""
import json
import sys
from kubernetes import client, config
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import ERROR_CHANNEL

config.load_kube_config(config_file=sys.argv[1])
core, pod, space = client.CoreV1Api(), sys.argv[2], "default"
run = core.connect_get_namespaced_pod_exec
BYTES = 2_000_000

# Both outputs, input, and how it ended.
script = "echo out; echo err >&2; read line; echo got $line; exit 3"
open_stream = stream(run, pod, space, command=["sh", "-c", script], stdin=True, stdout=True, stderr=True, tty=False,
                     _preload_content=False)
open_stream.write_stdin("line\n")
out = err = ""
while open_stream.is_open():
    open_stream.update(timeout=10)
    out += open_stream.read_stdout() if open_stream.peek_stdout() else ""
    err += open_stream.read_stderr() if open_stream.peek_stderr() else ""
assert (out, err, open_stream.returncode) == ("out\ngot line\n", "err\n", 3), (out, err, open_stream.returncode)

# All of a large output; what is not text; a terminal.
text = stream(run, pod, space, command=["sh", "-c", f"head -c {BYTES} /dev/zero | tr '\\0' x"], stdout=True, stderr=True)
assert text == "x" * BYTES, len(text)
bytes_ = stream(run, pod, space, command=["sh", "-c", "printf '\\377\\000\\001'"], stdout=True, binary=True)
assert bytes_ == b"\xff\x00\x01", bytes_
text = stream(run, pod, space, command=["sh", "-c", "test -t 1 && echo terminal"], stdout=True, tty=True)
assert text == "terminal\r\n", text

# A command that is not there.
missing = stream(run, pod, space, command=["/no/such/command"], stdout=True, stderr=True, _preload_content=False)
missing.run_forever(timeout=20)
status = json.loads(missing.read_channel(ERROR_CHANNEL))
assert (status["status"], status["reason"]) == ("Failure", "InternalError") and "/no/such/command" in status["message"], status

# Attached to what runs: its log has what is asked for meanwhile through a forwarded port.
attached = stream(core.connect_get_namespaced_pod_attach, pod, space, stdout=True, stderr=True, _preload_content=False)
forward = portforward(core.connect_get_namespaced_pod_portforward, pod, space, ports="8080")
socket = forward.socket(8080)
socket.setblocking(True)
socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
answer = b""
while b"hello from" not in answer:
    piece = socket.recv(4096)
    assert piece, answer
    answer += piece
socket.close()
assert forward.error(8080) is None
seen = ""
while "url:/" not in seen:
    assert attached.is_open(), seen
    attached.update(timeout=10)
    seen += attached.read_all()
attached.close()

# A log, whole and followed.
assert core.read_namespaced_pod_log(pod, space, tail_lines=1).count("\n") == 1
followed = core.read_namespaced_pod_log(pod, space, follow=True, _preload_content=False)
assert next(iter(followed.stream(64)))
followed.close()
print("ok")
