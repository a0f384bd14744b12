{{/* Seconds of the longest silence on a connection: a recording's answer may take as long as the longest call. */}}
{{- define "personaplex.longest" -}}
{{ add 60 (ceil (default 3600 .Values.settings.max_call_seconds)) }}
{{- end }}

{{/*
HAProxy's configuration.

Round robin, not least connections: a replica of HAProxy counts its own calls only. Least connections prefers pods that
are full with calls of other replicas, and alternates between them until the retries are used up. Round robin takes the
next pod at each attempt, so that three rounds of attempts reach every pod, also while other calls take their turns.
*/}}
{{- define "personaplex.haproxy" -}}
{{- $pods := int (include "personaplex.pods" .) -}}
{{- $any := ternary "[::]:%d v4v6" ":%d" (has "IPv6" .Values.service.ipFamilies) -}}
{{- /* A rollout may have as many new pods as old ones. */ -}}
{{- $room := mul 2 $pods -}}
{{- $tls := ne .Values.tls.secretName "" -}}
{{- $host := printf "%s-pods.%s.svc.%s" (include "personaplex.fullname" .) .Release.Namespace .Values.pool.clusterDomain -}}
global
    log stdout format raw local0 notice
    maxconn {{ .Values.pool.maxConnections }}
    nbthread {{ .Values.pool.threads }}
    tune.bufsize {{ .Values.pool.bodyBytes | int64 }}
    # Ends a replica that stops while calls go on.
    hard-stop-after {{ add .Values.drainSeconds 60 }}s
    {{- if $tls }}
    ssl-load-extra-del-ext
    {{- end }}

resolvers cluster
    parse-resolv-conf
    # A pod takes 28 bytes of an answer at most. Of an answer that is cut off HAProxy would use nothing.
    accepted_payload_size {{ min 65507 (max 8192 (add 512 (mul 28 $room))) }}
    timeout resolve 1s
    timeout retry 500ms
    hold valid 1s

defaults
    mode http
    log global
    timeout connect 1s
    timeout check 2s
    timeout http-request 60s
    timeout client {{ include "personaplex.longest" . }}s
    timeout server {{ include "personaplex.longest" . }}s
    timeout tunnel {{ include "personaplex.longest" . }}s
    # Three attempts per pod. A request that may have reached the models is not repeated.
    retries {{ mul 3 $pods }}
    retry-on conn-failure 503
    option redispatch 1
    balance roundrobin
    option httpchk
    http-check connect port 8998 {{ ternary "ssl alpn http/1.1" "proto h1" $tls }}
    http-check send meth GET uri /readyz
    # A pod that is down or drains gets no new calls. Its calls go on.
    default-server check inter 1s fall 2 rise 1 init-addr none resolvers cluster

frontend http
    bind {{ printf $any 8998 }}{{ if $tls }} ssl crt /tls/tls.crt alpn http/1.1{{ end }}
    # A request with a body is repeated only if all of it fits into one buffer. A longer one flows on.
    option http-buffer-request
    http-request deny deny_status 404 if { path /metrics }
    default_backend http

backend http
    # A request that finds its kept connection closed, because the pod has ended, could not be repeated.
    option http-server-close
    server-template pod {{ $room }} {{ $host }}:8998{{ if $tls }} ssl verify none alpn http/1.1{{ end }}

frontend grpc
    bind {{ printf $any 8999 }} {{ if $tls }}ssl crt /tls/tls.crt alpn h2{{ else }}proto h2{{ end }}
    default_backend grpc

# A refused call is a 200 with a gRPC status, which HAProxy does not repeat; clients do (docs/kubernetes.md).
backend grpc
    server-template pod {{ $room }} {{ $host }}:8999 {{ if $tls }}ssl verify none alpn h2{{ else }}proto h2{{ end }}

frontend metrics
    bind {{ printf $any 8404 }}
    http-request use-service prometheus-exporter if { path /metrics }
    monitor-uri /healthz
{{- end }}
