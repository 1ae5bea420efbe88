"""Who somebody is: names, certificates, signing keys and enrolment, and the files they are kept in.

``names``, ``authority``, ``requests`` and ``renewal`` are functions of values and time (keys,
serial numbers and blinding come from the operating system through ``cryptography``). ``files``, ``layout``,
``signing_keys``, ``profile`` and ``bootstrap`` do file I/O. Nothing here imports trio, grpc or the store.
"""
