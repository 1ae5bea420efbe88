"""The store in SQL, written once for every database that SQLAlchemy speaks to."""
