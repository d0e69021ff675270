"""Rules for pods that no schema holds."""

from collections.abc import Iterator
from typing import Any

from deploy_manifests import PodOf, clusters, of_kind, pods, quantity

Objects = list[dict[str, Any]]
# Kubernetes puts it into every namespace.
GIVEN_CONFIG_MAPS = {"kube-root-ca.crt"}
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


def restricted(objects: Objects) -> Iterator[str]:
    """Pod Security ``restricted``, on every container that will run, and a read-only root beside it."""
    for namespace in of_kind(objects, "Namespace"):
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"namespace {namespace['metadata']['name']}: restricted is not enforced"
    for pod in pods(objects):
        held = pod.spec.get("securityContext", {})
        if held.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{pod.where}: no seccomp profile"
        if held.get("runAsNonRoot") is not True or not held.get("runAsUser"):
            yield f"{pod.where}: may run as root"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(key):
                yield f"{pod.where}: {key}"
        for volume in pod.spec.get("volumes", []):
            if "hostPath" in volume:
                yield f"{pod.where}: volume {volume['name']} is a host path"
        for container in pod.containers:
            yield from _container(f"{pod.where}/{container['name']}", container)


def _container(where: str, container: dict[str, Any]) -> Iterator[str]:
    held = container.get("securityContext", {})
    if held.get("allowPrivilegeEscalation") is not False:
        yield f"{where}: allows privilege escalation"
    if held.get("capabilities", {}).get("drop") != ["ALL"] or held.get("capabilities", {}).get("add"):
        yield f"{where}: keeps capabilities"
    if held.get("privileged") or held.get("runAsUser") == 0 or held.get("runAsNonRoot") is False:
        yield f"{where}: privileged or root"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield f"{where}: takes a port of the host"
    if held.get("readOnlyRootFilesystem") is not True:
        yield f"{where}: root file system is not read-only"


def writable_scratch(objects: Objects) -> Iterator[str]:
    """With a read-only root every container needs a bounded /tmp; Ray's sessions live there."""
    for pod in pods(objects):
        volumes = {v["name"]: v for v in pod.spec.get("volumes", [])}
        for container in pod.containers:
            mounts = {m["mountPath"]: m for m in container.get("volumeMounts", [])}
            volume = volumes.get(mounts.get("/tmp", {}).get("name", ""), {})
            if "sizeLimit" not in volume.get("emptyDir", {}):
                yield f"{pod.where}/{container['name']}: /tmp is no bounded emptyDir"
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.where}/{container['name']}: mounts the unknown volume {mount['name']}"


def service_account_tokens(objects: Objects) -> Iterator[str]:
    """Only the autoscaler, where there is one, holds a token for the API server."""
    accounts = {a["metadata"]["name"]: a for a in of_kind(objects, "ServiceAccount")}
    for name, account in accounts.items():
        if account.get("automountServiceAccountToken") is not False:
            yield f"service account {name}: mounts its token by itself"
    for pod in pods(objects):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: mounts a service account token by itself"
        tokens = {
            v["name"]
            for v in pod.spec.get("volumes", [])
            if any("serviceAccountToken" in s for s in v.get("projected", {}).get("sources", []))
        }
        scales = any(c["name"] == "autoscaler" for c in pod.containers)
        if tokens and not scales:
            yield f"{pod.where}: holds a service account token that nothing uses"
        for container in pod.containers:
            mounted = {m["mountPath"] for m in container.get("volumeMounts", []) if m["name"] in tokens}
            if container["name"] != "autoscaler" and mounted:
                yield f"{pod.where}/{container['name']}: can reach the API server"
            if container["name"] == "autoscaler" and TOKEN_PATH not in mounted:
                yield f"{pod.where}/autoscaler: has no token and cannot ask for workers"
    for role in of_kind(objects, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
        yield f"{role['kind']} {role['metadata']['name']}: grants rights that nothing here uses"


def references(objects: Objects) -> Iterator[str]:
    """Everything that a pod names is among the manifests; every service account is used."""
    names = {(o["kind"], o["metadata"]["name"]) for o in objects}
    used = set()
    for pod in pods(objects):
        account = pod.spec.get("serviceAccountName", "default")
        used.add(account)
        wanted = [("ServiceAccount", account)]
        for volume in pod.spec.get("volumes", []):
            if "persistentVolumeClaim" in volume:
                wanted.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
            if "configMap" in volume:
                wanted.append(("ConfigMap", volume["configMap"]["name"]))
            if "secret" in volume:
                wanted.append(("Secret", volume["secret"]["secretName"]))
        for container in pod.containers:
            for variable in container.get("env", []):
                source = variable.get("valueFrom", {})
                if "secretKeyRef" in source:
                    wanted.append(("Secret", source["secretKeyRef"]["name"]))
                if "configMapKeyRef" in source:
                    wanted.append(("ConfigMap", source["configMapKeyRef"]["name"]))
        for kind, name in wanted:
            if (kind, name) not in names and name not in GIVEN_CONFIG_MAPS:
                yield f"{pod.where}: {kind} {name} does not exist"
    for account in of_kind(objects, "ServiceAccount"):
        if account["metadata"]["name"] not in used and of_kind(objects, "RayJob"):
            yield f"service account {account['metadata']['name']}: nobody uses it"


CLUSTER_WIDE = ("Namespace", "PersistentVolume", "ResourceFlavor", "ClusterQueue")


def namespaces(objects: Objects) -> Iterator[str]:
    """Everything lives in the one namespace, which is there; Kustomize mends references only within it."""
    held = {o["metadata"]["name"] for o in of_kind(objects, "Namespace")}
    for o in objects:
        namespace = o["metadata"].get("namespace")
        if o["kind"] in CLUSTER_WIDE:
            if namespace is not None:
                yield f"{o['kind']} {o['metadata']['name']}: has a namespace"
        elif namespace not in held:
            yield f"{o['kind']} {o['metadata']['name']}: namespace {namespace} is not among the manifests"


def images(objects: Objects) -> Iterator[str]:
    """One image a cluster, pinned by a tag of this version or by a digest."""
    from cryoseg_dist import __version__

    for pod in pods(objects):
        for container in pod.containers:
            image = container["image"]
            tag = image.rpartition("/")[2].partition(":")[2]
            if "@sha256:" in image:
                continue
            if not tag or tag == "latest" or tag.split("-")[0] != __version__:
                yield f"{pod.where}/{container['name']}: image {image} is not pinned to version {__version__}"
    used = {c["image"] for pod in pods(objects) for c in pod.containers}
    if len(used) > 1:
        yield f"images differ within a cluster: {sorted(used)}"


def resources(objects: Objects) -> Iterator[str]:
    """Requests and limits given; memory and GPUs the same in both, so that nothing is promised twice."""
    for pod in pods(objects):
        for container in pod.containers:
            where = f"{pod.where}/{container['name']}"
            requests = container.get("resources", {}).get("requests", {})
            limits = container.get("resources", {}).get("limits", {})
            for name in ("cpu", "memory"):
                if name not in requests or name not in limits:
                    yield f"{where}: {name} without request or limit"
                elif quantity(requests[name]) > quantity(limits[name]):
                    yield f"{where}: requests more {name} than its limit"
            if requests.get("memory") != limits.get("memory"):
                yield f"{where}: memory limit {limits.get('memory')} is not its request {requests.get('memory')}"
            for name in requests.keys() | limits.keys():
                if name.endswith("/gpu") and str(requests.get(name)) != str(limits.get(name)):
                    yield f"{where}: {name} limit is not its request"
        yield from _scratch_fits(pod)


def _scratch_fits(pod: PodOf) -> Iterator[str]:
    """The ephemeral storage limit covers the scratch volumes that count against it, or the pod is evicted."""
    limit = sum(
        quantity(c.get("resources", {}).get("limits", {}).get("ephemeral-storage", 0)) for c in pod.spec["containers"]
    )
    asked = [v["emptyDir"] for v in pod.spec.get("volumes", []) if "emptyDir" in v]
    size = max((quantity(v.get("sizeLimit", 0)) for v in asked if v.get("medium") != "Memory"), default=0.0)
    if limit and size > limit:
        yield f"{pod.where}: scratch of {size:.3g} bytes is more than the ephemeral storage limit {limit:.3g}"


def secrets(objects: Objects) -> Iterator[str]:
    """Ray asks for a token that KubeRay draws; no secret stands in a manifest."""
    held = {s["metadata"]["name"] for s in of_kind(objects, "Secret")}
    for secret in of_kind(objects, "Secret"):
        if secret.get("data") or secret.get("stringData"):
            yield f"secret {secret['metadata']['name']}: its contents are in the manifest"
    for where, spec in clusters(objects):
        options = spec.get("authOptions", {})
        if options.get("mode") != "token":
            yield f"{where}: anyone who reaches its ports can run code (authOptions.mode is not token)"
        name = options.get("secretName")
        if name and name not in held:
            yield f"{where}: token secret {name} does not exist"
    for pod in pods(objects):
        for container in pod.containers:
            for variable in container.get("env", []):
                word = variable["name"].upper()
                if "value" in variable and any(part in word for part in ("TOKEN", "SECRET", "PASSWORD", "ACCESS_KEY")):
                    yield f"{pod.where}/{container['name']}: {variable['name']} holds a secret in plain sight"


RULES = (restricted, writable_scratch, service_account_tokens, references, namespaces, images, resources, secrets)
