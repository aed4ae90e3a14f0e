"""The ingress of the study's server: the only process that hospitals can reach.

    python -m federation.ingress SERVER_DIR

It terminates TLS, requests the node's certificate, and serves two kinds of requests: those of Flower's Fleet API that
a node needs, which it forwards to the SuperLink on loopback, and enrolment. All other requests are refused. Paths are
compared literally, exactly as they were sent.

TLS proves that the caller has the private key of a certificate of the study's authority. The ingress checks at every
request whether that certificate was issued to a site of this study, has expired or was revoked; an open connection
gives no privilege. Flower's own signature covers only a time and is valid for 300 s. A copied signature is useless:
it must be made with the key of the caller's own certificate.

The SuperLink reads the requests and knows the messages. It decides which messages, objects and runs belong to the
caller (`federation.superlink.fleet_binding`), and identifies the caller by the key that the ingress has compared with
the certificate.

With nginx in front, the ingress listens on a Unix socket, which file permissions close to other users. nginx passes
the certificate on in a header.

Begin with `listener`, then `connections` and `answers`.
"""
