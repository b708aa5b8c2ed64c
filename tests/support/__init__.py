"""What several tests share: slides, servers, clusters, and checks of others."""
