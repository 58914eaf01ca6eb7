{{/* Labels of every object; the argument is a list of the root context and the component. */}}
{{- define "tracelake.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: tracelake
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end }}

{{/* What selects a component's pods: never changes. */}}
{{- define "tracelake.selector" -}}
app.kubernetes.io/name: tracelake
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* An image; the argument is a list of the root context and the image's name. */}}
{{- define "tracelake.image" -}}
{{- $root := index . 0 -}}
image: {{ printf "%s/%s:%s" $root.Values.image.repository (index . 1) ($root.Values.image.tag | default $root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
{{- end }}

{{- define "tracelake.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the operator's pods run, and with them the Job, the test and the dev store. */}}
{{- define "tracelake.placement" -}}
{{- with .Values.operator.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.operator.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The proxy of administrators' stores, for operator and agents. What is in the cluster or on the node is reached without it:
     stores by their Services' names, and the addresses where clouds hand out identities. Neither the API server nor the operator
     is asked through it in any case; the API server is named all the same, for whoever looks. */}}
{{- define "tracelake.proxyEnv" -}}
{{- with .Values.proxy }}
{{- if or .http .https }}
{{- with .http }}
- name: HTTP_PROXY
  value: {{ . | quote }}
{{- end }}
{{- with .https }}
- name: HTTPS_PROXY
  value: {{ . | quote }}
{{- end }}
- name: NO_PROXY
  value: {{ concat (list "localhost" "127.0.0.0/8" "::1" "169.254.0.0/16" "fe80::/10" "fd00:ec2::/32" ".svc" ".cluster.local" "$(KUBERNETES_SERVICE_HOST)") .noProxy | join "," | quote }}
{{- else if .noProxy }}{{ fail "proxy.noProxy needs proxy.http or proxy.https" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The ConfigMap with certificates that are trusted for every store, if any. */}}
{{- define "tracelake.extraCA" -}}
{{- with .Values.extraCA }}
{{- if and .pem .configMap }}{{ fail "set either extraCA.pem or extraCA.configMap, not both" }}{{ end }}
{{- if .pem }}tracelake-extra-ca{{ else }}{{ .configMap }}{{ end }}
{{- end }}
{{- end }}

{{/* The role of the operator's web identity, if it has one by these values. */}}
{{- define "tracelake.roleArn" -}}
{{- with .Values.operator.webIdentity }}
{{- if and .endpoint (not .roleArn) }}{{ fail "operator.webIdentity.endpoint needs operator.webIdentity.roleArn" }}{{ end }}
{{- .roleArn }}
{{- end }}
{{- end }}

{{/* What the Pod Security level `restricted` asks of a pod and of a container. */}}
{{- define "tracelake.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "tracelake.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The ClusterTraceStore that the chart makes, if any: its spec as YAML. */}}
{{- define "tracelake.storeSpec" -}}
{{- if .Values.devStore.enabled -}}
{{- if .Values.defaultStore.spec }}{{ fail "set either devStore.enabled or defaultStore.spec, not both" }}{{ end -}}
s3:
  endpoint: http://tracelake-dev-store.{{ .Release.Namespace }}.svc:8333
  bucket: tracelake
credentials:
  secretRef: {name: tracelake-dev-store}
{{- else if .Values.defaultStore.spec -}}
{{- if not .Values.defaultStore.name }}{{ fail "defaultStore.spec needs defaultStore.name" }}{{ end -}}
{{- toYaml .Values.defaultStore.spec }}
{{- end -}}
{{- end }}
