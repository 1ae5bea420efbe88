"""Chef's keys, principals and request signatures; every wing that talks to Chef clients needs them."""
