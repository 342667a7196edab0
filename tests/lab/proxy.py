"""A proxy as houses have them: `python proxy.py PORT` carries CONNECT requests; with `inspect FOLDER` it opens the TLS
in them, with a certificate of its own that it makes there."""

import contextlib
import socket
import ssl
import sys
import threading
from pathlib import Path


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def serve(client, context):
    head = b""
    while b"\r\n\r\n" not in head:
        if not (data := client.recv(4096)):
            return
        head += data
    words = head.split(b" ")
    host, _, port = words[1].decode().rpartition(":")
    if words[0] != b"CONNECT":
        client.sendall(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")
        client.close()
        return
    if context is None:
        try:
            server = socket.create_connection((host, int(port)), 10)
            server.settimeout(None)
        except OSError:
            client.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            client.close()
            return
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=pump, args=(client, server), daemon=True).start()
        pump(server, client)
        return
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    with contextlib.suppress(OSError):
        context.wrap_socket(client, server_side=True).recv(1)  # whoever is not fooled says nothing


def main():
    context = None
    if sys.argv[2:3] == ["inspect"]:
        from konvoi.security.identity import Authority

        folder = Path(sys.argv[3])
        authority = Authority.make("ACME Web Security")
        authority.issue("desk").save(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    listener = socket.create_server(("", int(sys.argv[1])))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client, context), daemon=True).start()


if __name__ == "__main__":
    main()
