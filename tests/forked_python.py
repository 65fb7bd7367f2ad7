"""`python SCRIPT ...` and `python -m MODULE ...` in forks of a server that has imported torch and the like.

Each starts seconds sooner. All else is as in a process of its own: folder, environment, streams, end and
exit code; what it needs of audiocls it imports itself.
"""

import atexit
import functools
import gc
import importlib
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

IMPORTED = ["torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_svg"]
IMPORTED += ["jinja2", "safetensors.torch", "soundfile", "tqdm"]
MOST_BYTES = 1 << 17  # of a request


def run_forked(
    arguments: Sequence[str | Path], *, cwd: str | Path = ".", env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run, the output captured. Variables that libraries read on import are the server's."""
    server, connection = start_server()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        request = pickle.dumps(
            ([os.fspath(argument) for argument in arguments], str(Path(cwd).resolve()), dict(env))
        )
        socket.send_fds(connection, [request], [0, out.fileno(), err.fileno()])
        connection.settimeout(timeout)
        try:
            code = int(connection.recv(100))
        except TimeoutError:
            os.killpg(server.pid, signal.SIGKILL)
            end_server()
            raise subprocess.TimeoutExpired(arguments, timeout) from None
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, code, *said)


@functools.cache
def start_server() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The server of this process, started where it does not run yet."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = theirs.fileno()
    with theirs:
        server = subprocess.Popen(
            [sys.executable, __file__, str(number)],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            stdout=subprocess.DEVNULL,
            pass_fds=[number],
            start_new_session=True,
        )
    atexit.register(end_server)
    return server, ours


def end_server() -> None:
    if start_server.cache_info().currsize:
        server, connection = start_server()
        connection.close()
        server.wait()
        start_server.cache_clear()
        atexit.unregister(end_server)


def serve(connection: socket.socket) -> list[str]:
    """Fork for each request. In the forks this returns: the arguments of what is to be run there."""
    while True:
        request, files, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
        if not request:
            sys.exit()
        if child := os.fork():
            for file in files:
                os.close(file)
            _, status = os.waitpid(child, 0)
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        arguments, folder, environment = pickle.loads(request)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        return arguments


if __name__ == "__main__":
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # so that the end of a fork takes half as long
    first, *rest = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if first == "-m":
        sys.path[0], sys.argv = str(Path.cwd()), rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(first).parent), [first, *rest]
        runpy.run_path(first, run_name="__main__")
