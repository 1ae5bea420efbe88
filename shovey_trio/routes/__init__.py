"""Ways to nodes: implementations of ``nursery.route.NodeRoute``. A wing brings its own."""
