{{- define "personaplex.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "personaplex.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" }}
{{- else }}
{{- $name := include "personaplex.name" . }}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 48 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "personaplex.selector" -}}
app.kubernetes.io/name: {{ include "personaplex.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "personaplex.labels" -}}
{{ include "personaplex.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Selector labels of the serving pods. */}}
{{- define "personaplex.servers" -}}
{{ include "personaplex.selector" . }}
app.kubernetes.io/component: server
{{- end }}

{{/* Selector labels of HAProxy's pods. */}}
{{- define "personaplex.balancers" -}}
{{ include "personaplex.selector" . }}
app.kubernetes.io/component: pool
{{- end }}

{{/* Image `name` of .Values.image. Takes (dict "root" $ "name" NAME). */}}
{{- define "personaplex.image" -}}
{{- $image := .root.Values.image -}}
{{- with $image.registry }}{{ . }}/{{ end }}{{ index $image .name }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- with index $image.digests .name }}@{{ . }}{{ end }}
{{- end }}

{{/* Image of the gateway's container, which its other containers use too. */}}
{{- define "personaplex.gatewayImage" -}}
{{ include "personaplex.image" (dict "root" . "name" (ternary "gateway" "cpu" (eq .Values.device "cuda"))) }}
{{- end }}

{{- define "personaplex.claim" -}}
{{- default (printf "%s-models" (include "personaplex.fullname" .)) .Values.models.volume.existingClaim }}
{{- end }}

{{/* Whether the volume of the models is the chart's own. */}}
{{- define "personaplex.ownVolume" -}}
{{- if and (eq .Values.models.source "hub") (not .Values.models.volume.existingClaim) }}true{{ end }}
{{- end }}

{{/* Whether it can be mounted on one node only. */}}
{{- define "personaplex.oneNode" -}}
{{- $modes := .Values.models.volume.accessModes -}}
{{- if and (include "personaplex.ownVolume" .) (not (or (has "ReadWriteMany" $modes) (has "ReadOnlyMany" $modes))) }}true{{ end }}
{{- end }}

{{- define "personaplex.checkpoint" -}}
{{- $models := .Values.models -}}
{{- if $models.tiny }}checkpoint-tiny
{{- else if $models.checkpointFolder }}{{ $models.checkpointFolder }}
{{- else }}checkpoint-{{ printf "%s@%s" $models.hub.repository $models.hub.revision | sha256sum | trunc 10 }}
{{- end }}
{{- end }}

{{/* Folder on the volume with the served models. Its name contains a hash of the build's parameters. */}}
{{- define "personaplex.folder" -}}
{{- $models := .Values.models -}}
{{- if eq $models.source "image" }}models
{{- else if ne $models.source "hub" }}{{ $models.folder }}
{{- else }}
{{- $parameters := list (printf "%s%s" (default .Chart.AppVersion .Values.image.tag) (default "" .Values.image.digests.cpu)) (include "personaplex.checkpoint" .) .Values.device $models.variant $models.kvPrecision (toJson .Values.slots) -}}
models-{{ toJson $parameters | sha256sum | trunc 10 }}
{{- end }}
{{- end }}

{{- define "personaplex.models" -}}
/volume/{{ include "personaplex.folder" . }}
{{- end }}

{{/* The volume of the models, as pods mount it at /volume. */}}
{{- define "personaplex.volume" -}}
{{- $models := .Values.models -}}
name: models
{{- if eq $models.source "oci" }}
image:
  reference: {{ $models.image.reference }}
  pullPolicy: {{ $models.image.pullPolicy }}
{{- else if eq $models.source "image" }}
emptyDir:
  sizeLimit: {{ $models.image.size }}
{{- else }}
persistentVolumeClaim:
  claimName: {{ include "personaplex.claim" . }}
{{- end }}
{{- end }}

{{/* Spread over zones and nodes. Takes the selector labels of the pods. */}}
{{- define "personaplex.spread" -}}
{{- range tuple "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- $ | nindent 6 }}
{{- end }}
{{- end }}

{{/* The largest number of pods outside a rollout. */}}
{{- define "personaplex.pods" -}}
{{ ternary .Values.autoscaling.max .Values.replicas .Values.autoscaling.enabled }}
{{- end }}

{{/* IP families of a service's spec. */}}
{{- define "personaplex.families" -}}
{{- with .Values.service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.service.ipFamilies }}
ipFamilies: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "personaplex.scheme" -}}
{{ ternary "HTTPS" "HTTP" (ne .Values.tls.secretName "") }}
{{- end }}

{{- define "personaplex.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The user of the images; its group can write to the volume. */}}
{{- define "personaplex.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The only writable folder of the containers. */}}
{{- define "personaplex.scratchEnv" -}}
- name: HOME
  value: /tmp
{{- end }}

{{/* Mount and volume of the token for Kubernetes. */}}
{{- define "personaplex.tokenMount" -}}
- name: token
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}

{{- define "personaplex.token" -}}
- name: token
  projected:
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
{{- end }}

{{/* Resources of a container whose threads follow its CPU limit, which is the request by default. Takes resources. */}}
{{- define "personaplex.limitedCpu" -}}
{{- $request := dig "requests" "cpu" "" . -}}
{{- $limits := ternary (dict "cpu" $request) dict (ne $request "") -}}
{{- toYaml (merge (deepCopy .) (dict "limits" $limits)) }}
{{- end }}

{{- define "personaplex.names" -}}
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}

{{/* HTTP probe of the gateway. Takes (dict "root" $ "path" PATH). */}}
{{- define "personaplex.get" -}}
path: {{ .path }}
port: http
scheme: {{ include "personaplex.scheme" .root }}
{{- end }}

{{/* Command of Triton's probes: Triton listens on the loopback interface only. Takes `ready` or `live`. */}}
{{- define "personaplex.triton" -}}
command:
  - python3
  - -c
  - import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/{{ . }}', timeout=4)
{{- end }}

{{/*
Whether `helm test` can make a call. With TLS the certificate is not valid for the name of the service; a file of API keys
has hashes only.
*/}}
{{- define "personaplex.tested" -}}
{{- if not (or .Values.tls.secretName (and .Values.apiKeys.secretName .Values.apiKeys.file)) }}true{{ end }}
{{- end }}

{{/* Whether a balancer repeats refused calls on other pods. */}}
{{- define "personaplex.pooled" -}}
{{- if or .Values.pool.enabled (and .Values.route.enabled .Values.route.envoy.enabled) }}true{{ end }}
{{- end }}

{{/*
Command of the preStop hook. A balancer that repeats refused calls on other pods need not be waited for: the drain begins
at once. Otherwise the pod takes calls until load balancers have removed it.
*/}}
{{- define "personaplex.preStop" -}}
{{- $sleep := printf "sleep %v" .Values.preStopSeconds -}}
{{- if include "personaplex.pooled" . }}
{{- toJson (list "sh" "-c" (printf "personaplex admin drain; %s" $sleep)) }}
{{- else }}
{{- toJson (splitList " " $sleep) }}
{{- end }}
{{- end }}

{{/* Termination grace period in seconds: preStop hook, drain, and 120 s to end conversations and Triton. */}}
{{- define "personaplex.grace" -}}
{{ add .Values.preStopSeconds .Values.drainSeconds 120 }}
{{- end }}

{{/* Public paths. /metrics and the probes are not among them. Takes the name of a path type. */}}
{{- define "personaplex.paths" -}}
- {path: /, type: Exact}
- {path: /page, type: {{ . }}}
- {path: /v1, type: {{ . }}}
- {path: /asyncapi.json, type: Exact}
- {path: /personaplex.proto, type: Exact}
- {path: /api/chat, type: Exact}
- {path: /gated/api/chat, type: Exact}
- {path: /docs, type: Exact}
- {path: /openapi.json, type: Exact}
{{- end }}

{{/* PromQL matchers of the series of this release's pods. */}}
{{- define "personaplex.series" -}}
namespace="{{ .Release.Namespace }}",job="{{ .Release.Namespace }}/{{ include "personaplex.fullname" . }}"
{{- end }}

{{/* Matches the series of pods that take new conversations. Takes the root context. */}}
{{- define "personaplex.open" -}}
and on(instance) personaplex_draining{ {{- include "personaplex.series" . -}} } == 0
{{- end }}

{{/* Share of the slots of such pods that are in use. Takes the root context. */}}
{{- define "personaplex.used" -}}
sum(personaplex_conversations_active{ {{- include "personaplex.series" . -}} } {{ include "personaplex.open" . }})
/ sum(personaplex_slots{ {{- include "personaplex.series" . -}} } {{ include "personaplex.open" . }})
{{- end }}

{{/* Target number of conversations per pod. */}}
{{- define "personaplex.target" -}}
{{ max 1 (floor (mulf .Values.slots .Values.autoscaling.target)) }}
{{- end }}

{{/* Scale up at once, scale down slowly. Takes .Values.autoscaling. */}}
{{- define "personaplex.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
scaleDown:
  stabilizationWindowSeconds: {{ .scaleDownSeconds }}
  policies:
    - type: Pods
      value: 1
      periodSeconds: 60
{{- end }}
