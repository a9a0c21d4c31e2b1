"""A utility's enrolment authority: who may have a certificate, and issuing it.

`registry` is the list of enrolment ids with their secrets (hashed), roles and attributes; it is
one file, so that the command line and the running service share it. `service` speaks
fabric-ca's REST interface over HTTPS, so that fabric-ca's own clients work here and ours work
against a fabric-ca. Private keys never come here: clients send requests (CSR) for keys of
their own.
"""
