"""The server's door: the one thing that hospitals reach.

    python -m federation.ingress SERVER_DIR

It speaks TLS, asks for the node's certificate, and leads to two places: the requests of Flower's Fleet API that a
node needs, passed on to the SuperLink on loopback; and enrolment. Nothing else passes, and a path counts letter by
letter as it was sent.

TLS proves that the caller holds the key of a certificate of the study's authority. Whether that certificate was
issued to a site of this study, has ended or was revoked is judged here, at every request: an open connection is no
privilege. Flower's own signature covers a time alone, valid for 300 s; copied, it opens nothing, for the door wants it
made with the very key of the caller's certificate, and whoever has that key needs no copy.

The SuperLink, which reads the requests and knows the messages, decides which messages, objects and runs belong to the
caller (`federation.superlink.fleet_binding`). It identifies the caller by the key that was checked against the
certificate here.

Where nginx stands in front, the door listens on a Unix socket, which the file system keeps from everybody else, and
nginx passes the certificate on in a header.
"""
