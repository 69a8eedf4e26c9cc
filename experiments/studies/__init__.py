"""What is run: training, gradient noise, depth of graphs, the reactor's control."""
