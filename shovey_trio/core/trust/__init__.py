"""Whom to believe: orders and their signatures, key sets, enrolment, roles and grants."""
