# All images, for amd64 and arm64 (GH200, GB200):
#   REGISTRY=registry.example.com/voice/ docker buildx bake --file deploy/docker-bake.hcl --push
# One of them, for this machine, into its own Docker: … bake --file deploy/docker-bake.hcl --load --set '*.platform=linux/amd64' gateway
variable "REGISTRY" {
  # Prefix of the names, with its slash.
  default = ""
}

variable "TAG" {
  default = "0.2.0"
}

variable "REVISION" {
  # Commit of the source, for the label.
  default = ""
}

group "default" {
  targets = ["gateway", "cpu", "models"]
}

target "image" {
  context   = "."
  platforms = ["linux/amd64", "linux/arm64"]
  labels = {
    "org.opencontainers.image.version"  = TAG
    "org.opencontainers.image.revision" = REVISION
    "org.opencontainers.image.licenses" = "MIT"
  }
  attest = ["type=provenance,mode=max", "type=sbom"]
}

target "gateway" {
  inherits   = ["image"]
  dockerfile = "deploy/gateway.Dockerfile"
  target     = "gateway"
  tags       = ["${REGISTRY}personaplex-gateway:${TAG}"]
}

target "cpu" {
  inherits   = ["image"]
  dockerfile = "deploy/gateway.Dockerfile"
  target     = "cpu"
  tags       = ["${REGISTRY}personaplex-cpu:${TAG}"]
}

target "models" {
  inherits   = ["image"]
  dockerfile = "deploy/models.Dockerfile"
  tags       = ["${REGISTRY}personaplex-models:${TAG}"]
}
