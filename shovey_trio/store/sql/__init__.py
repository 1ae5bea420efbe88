"""The store in SQL, written once for every database that SQLAlchemy speaks to.

One short module for what is read or written of each subject, which is why there are more than twenty.
"""
