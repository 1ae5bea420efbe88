"""The network: the stream to the controller, doorbells, output on its way, enrolment."""
