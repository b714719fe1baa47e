"""What each code of a problem means and what to do about it, for readers of a report. Pure.

A problem's own message says what is wrong in this place; here stands what holds everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Meaning(NamedTuple):
    what: str
    to_do: str


_TABLE = """
# files and YAML
alias | A YAML alias
    Write the value out where it is needed.
anchor | A YAML anchor
    Write the value out where it is needed.
bad_number | A number that can't be kept as it is
    Put it in quotes if it is text; write a smaller one if it is a number.
control_character | A character that does not belong in a text file
    Remove it; look for what an editor or a copy brought in.
duplicate_key | A field stands twice in one mapping
    Keep one of the two.
empty_file | A file without a manifest
    Remove the file if what it held should go.
empty_revision | A revision without one manifest
    Restore the files. To remove everything, decommission the instances first.
file_too_large | A file larger than is read
    Split it.
key_not_string | A field's name that is no text
    Put it in quotes.
key_too_long | A field's name that is very long
    Shorten it.
merge_key | A YAML merge key
    Write the fields out.
not_a_mapping | A document that is no manifest
    Begin it with apiVersion, kind, metadata and spec.
not_utf8 | A file that is not UTF-8
    Save it as UTF-8.
submodule | A submodule stands where manifests belong
    Commit the files themselves.
symlink | A symbolic link stands where manifests belong
    Commit the file itself.
tag | A YAML tag
    Leave the tag out.
too_deep | Nested deeper than is read
    Flatten it.
too_many_documents | More documents in one file than are read
    Split the file.
too_many_problems | More problems than are shown
    Mend those that are shown first.
yaml_syntax | Not readable as YAML
    Look at the indentation, quotes and brackets there and in the lines above.
# one document
duplicate_item | Two entries of a list share what must differ
    Give each its own.
duplicate_object | An object stands in two places
    Keep one of the two.
field_not_allowed | A field that does not go with another
    Take one of the two out.
invalid_field | A field's value is refused
    Compare it with the manifest reference.
kind_mismatch | A kind that does not live at this path
    Move the file to the path of its kind.
launch_parameters_invalid | launch_parameters is no JSON Schema of a mapping
    Mend the schema at the place named.
launch_parameters_ref | $ref in launch_parameters
    Write the schema out: nothing is looked up.
missing_field | A required field is missing
    Add it.
name_mismatch | A name that disagrees with its file or folder
    Rename one of the two.
out_of_range | A number outside its bounds
    Choose one within them.
path_mismatch | A field that disagrees with the path
    Write what the path says, or move the file.
schema_violation | Against the schema of its kind
    Compare it with the manifest reference.
unknown_field | A field that the kind does not have
    Look for a typing error; the manifest reference lists all fields.
unknown_kind | A kind that does not exist
    Look for a typing error.
unknown_path | A path where no kind lives
    Move the file to the path of its kind.
unknown_value | A value that is none of those allowed
    Choose one of those.
wrong_count | Too few or too many entries
    Add or remove some.
wrong_format | A text of the wrong form
    Write it in the form named.
wrong_length | A text that is too short or too long
    Shorten or complete it.
wrong_type | A value of the wrong type
    Write one of the type named; quotes make a text.
# between objects
address_taken | Two nodes have one address
    Give each the address at which other nodes reach it.
allocation_not_active | An instance on an allocation that is released
    Place it on an active allocation.
allocation_overcommitted | Instances ask more than their allocation has
    Ask less, or lease more.
artifact_not_in_channel | What is offered here is promoted for other channels than this one takes
    Add the channel to spec.channels of the Artifact.
artifact_in_use | An artifact is to be retired that instances still run
    Nothing: it follows by itself once they run something else or are gone.
artifact_not_promoted | A version that is offered uses an artifact that is not promoted
    Promote the Artifact first.
artifact_not_visible | An artifact that the project may not use
    Its Artifact says who may: visibility project, tenant or platform.
artifact_retired | A version in use points at a retired artifact
    Point it at one in good standing, or retire the version.
artifact_revoked | A version in use points at a revoked artifact
    Point it at one in good standing, or retire the version.
artifact_unregistered | A version uses a digest that nobody registered
    Register it as an Artifact, by repository and digest.
bad_member_count | A role takes no number of members
    Make members_min the smaller.
below_minimum | Less asked than the version needs
    Ask more, or use another version.
blob_name_taken | Two blobs of a version have one name
    Call one of them something else.
blob_source_not_allowed | A blob comes from where no trust policy allows
    Take it from an allowed source, or add a prefix to blob_sources.
blobs_not_carried | A runtime kind that brings no blobs to its workload
    Use one that does, or leave the blobs out.
dependency_cycle | Instances that wait for each other
    Take one of them out of a depends_on.
dependency_not_running | An instance waits for one that does not run
    Let that one run, stop this one, or take it out of depends_on.
engine_not_on_node | The node lacks the engine that the version needs
    Place it on another node.
exceeds_allocation | More asked than the allocation has
    Ask less, or lease more.
foreign_repository | An Artifact names the canonical repository of another project
    Ask that project for a wider visibility, or publish it to a place of your own.
foreign_source | A blob's source is not where its project's uploads end up
    Write the source that the hint gives.
gpu_leased_twice | One GPU in two active allocations
    Lease another.
gpu_not_on_node | An allocation names a GPU that its node does not list
    Correct the UUID, or list it on the Node.
hint_not_allowed | A mode that policy does not allow the project
    Leave the hint out, or have the entitlement widened.
host_port_taken | One host port asked twice on a node
    Take another, or leave host_port out.
invalid_launch_parameters | launch_parameters can't be used
    Mend the schema.
invalid_parameter | A parameter that no launch understands
    Choose a value within the bounds named.
member_count | More or fewer members of a role than the version takes
    Add some under spec.members, or take some out.
member_twice | Two members of an instance have one name
    Rename one: each name stays a member's own.
members_not_offered | The runtime kind runs on one node only
    Use a kind that carries members, or take them out.
moved_from_present | moved_from names an instance that is still declared
    Remove the old one, or take moved_from out.
moved_twice | Two instances claim to be the same former one
    Take moved_from out of all but one.
no_image_variant | No image for the node's accelerators
    Place it on another node, or add a variant.
no_member_roles | A port for members of a version that has no roles for any
    Name the roles under runtime_profile.members, or expose the port as private.
no_package_index | Python packages are asked for, and the environment has no index
    An admin sets package_index.url in the Environment.
no_port | A host port for a version without ports
    Take host_port out.
node_not_exclusive | A node to itself is needed, or leased, and it is shared
    Lease a node exclusively.
node_overcommitted | Allocations lease more than their node has
    Lease less.
node_without_address | A port for members on a node that others have no way to
    Say under spec.address of the Node where other nodes reach it.
not_entitled | The project may not use the app
    An admin adds or enables its Entitlement.
not_in_canary | The version is tried out by other projects only
    Name the project in the Promotion, or wait.
not_promoted | No Promotion offers the version
    Add one.
not_supported_yet | A parameter that nothing carries out yet
    Take it out: it is refused rather than ignored.
pip_hashes_partial | Some Python packages have a hash, and some have none
    Give each its hashes, also those that they need in turn, or none any.
pip_spec_refused | A Python package that may not be asked for so
    Name package and version alone: no options, addresses or paths; with a hash, pin it.
reference_quarantined | What is referred to has a problem of its own
    Mend that one first.
role_twice | Two roles of a version have one name
    Rename one; the first member's counts too.
runtime_not_offered | A runtime kind that is not offered yet
    Use one that is.
secret_env_reserved | A secret in a variable that decides how programs start, or is the platform's
    Call the variable something else, or read the file.
secret_env_taken | A secret in a variable that the version or a role sets already
    Leave one of the two out.
secret_name_reserved | A version's secret has the name of the one that every instance has
    Leave it out, or call yours something else.
secret_not_a_reference | An instance gives a reference for a secret that is generated
    Leave it out, or have the version say source: reference.
secret_not_bound | A version takes a secret by reference, and the instance gives none
    Add it under spec.secrets of the instance.
secret_reference_refused | What an instance gives is no secret that it may refer to
    Write secret://project/NAME or secret://tenant/NAME; a value never stands there.
secrets_not_carried | A runtime kind that brings no secrets to its workload
    Use one that does, or leave the secrets out.
staging_repository | An Artifact names the place of a publish intent, which does not stay
    Complete the intent, and register what it says.
unknown_environment | The Environment asked for is not there
    Add it, or ask for another.
unknown_reference | Something is named that does not exist
    Look for a typing error, or add it.
unknown_role | A member with a role that the version does not have
    Look for a typing error, or see the roles named.
unknown_secret | A secret that the version does not have, in a service, instance or instructions
    Look for a typing error, or name it in runtime_profile.secrets.
unusable_address | An address at which no other node could reach this one
    Give that of its interface on the network that the nodes share.
version_ambiguous | Two spellings of one version
    Keep one of them.
version_in_use | A version is to be retired that instances still run
    Nothing: it follows by itself once they run something else or are gone.
version_not_offered | The version takes no instances in its state
    Use one that is on offer.
version_unreadable | A version that can't be ordered
    Write it as 1.2.0, 1.2.0rc1 or 1.2.0+build.5.
wrong_accelerator | The version does not run on the node's accelerators
    Place it on another node.
wrong_capacity_shape | The version needs another shape of node
    Place it on another node.
# services of one app
condition_never_holds | Waiting for an end or for health that never comes
    Change the condition, or the restart or readiness of the other service.
dependency_twice | A service waits for another twice
    Say it once, with the condition that is meant.
endpoint_name_taken | An endpoint called as the one that the renderer makes
    Call it something else.
endpoint_not_http | A path or the gateway for what speaks no HTTP
    Leave the path out, or expose it as private.
endpoint_port_taken | Two endpoints at one port that can't be told apart
    Give them paths, and publish one at most.
field_not_read | A field that this runtime kind or renderer does not read
    Leave it out, or say it where the hint names it.
gpu_shares | Shares of GPUs that contradict each other
    Count them, or let all services have all.
gpus_too_few | Fewer GPUs than the services count
    Raise gpu_count.
image_missing | A service without an image on this sort of node
    Give it image_ref, or a variant for the node's accelerator family.
image_of_main | An image of the main service's own
    Say it in runtime_profile.image_ref or variants: the main service runs the version's.
limits_missing | A sidecar without a limit, in an instance that has one
    Say limits.memory_mib and limits.vcpu of every sidecar.
limits_too_small | The sidecars leave too little for the main service
    Ask for more memory or CPU, or limit the sidecars to less.
main_service | Not exactly one main service, or one that may end
    Give one service role: main; none where the renderer makes it. Leave its restart out.
nothing_reads_it | A volume, secret or blob that no service has
    Name it in a service, or leave it out.
packages_not_carried | Packages for an app of several services
    Put them into the image.
path_reserved | A volume or scratch where the system, secrets or blobs are
    Choose another path.
paths_overlap | Two things of a service in one place
    Give each a path of its own.
renderer_missing | docker_compose without a renderer, or without the part it needs
    Name a renderer under runtime_profile, and add the part called after it.
renderer_not_offered | A topology for a renderer that there is not
    Choose one of those named.
renderer_part_missing | A renderer without the part of the profile that it reads
    Add vllm or jupyter to runtime_profile, or choose another renderer.
scratch_too_large | More scratch than the service's memory can hold
    Lower it, or raise limits.memory_mib: scratch is in memory.
secret_in_command | A secret stands in a command line
    Name a secret instead, and change the one that was shown.
secret_in_env | A secret stands in a manifest for all to read
    Name a secret instead, and change the one that was shown.
secret_missing | A server that would let everybody in, since its secret is not there
    Name a secret of the profile, and bind it in the instance if it is a reference.
service_cycle | Services wait for each other in a circle
    Take one of the dependencies out.
service_name_taken | A service called as the renderer's own, or by a name that none could reach
    Call it something else.
sidecar_class | A sidecar that does not say its class, or a class that does not fit
    Give each sidecar a class, the main service none; setup has an end.
sidecar_not_allowed | A sidecar asks for what its class may not have
    Take the class that the hint names, or leave it out.
sidecar_unlimited | A sidecar without a limit for memory or CPU
    Say limits.memory_mib and limits.vcpu.
tensor_parallel_uneven | GPUs that pipeline_parallel does not divide
    Choose another gpu_count, or say tensor_parallel.
too_many_services | More services than one topology may have
    Make several apps of it.
topology_missing | docker_compose without anything that makes services
    Say renderer and topology in runtime_profile.
unknown_blob | A blob that the version does not have
    Look for a typing error, or name it in runtime_profile.blobs.
unknown_endpoint | The instructions show a port that nobody outside reaches
    Look for a typing error, or expose the endpoint.
unknown_service | A service that does not exist
    Look for a typing error.
unknown_volume | A volume that the topology does not have
    Look for a typing error, or add it under topology.volumes.
vital_after_all | A service is said not to be vital, and a vital one needs it
    Leave vital out, or wait for it to be started alone.
# keys, roles, channels, releases
key_id_shared | Two identities (or two trust policies) use one key id
    Give one of the keys another id.
key_shared | One public key stands in two identities or service accounts
    Each needs a key of its own; find out whose it is.
email_shared | An e-mail address stands in two identities
    Leave it with the one it belongs to.
key_never_valid | A key's valid_until is not after its valid_from
    Correct one of the two.
role_beyond_scope | A platform-admin or tenant-admin bound to less than a platform or tenant
    Widen the scope or name a smaller role.
role_needs_human | A machine is bound to a role that is for people
    Bind app-operator, artifact-publisher or viewer, or a person.
binding_outside_project | A service account is bound outside its own project
    Write its own project as the scope.
channel_ruled_twice | Two trust policies have rules for one channel
    Keep one.
channel_unknown | An Environment names a channel that no TrustPolicy describes
    Correct spec.trust, or describe the channel under channels of a TrustPolicy.
channel_closed | A channel that nothing can get into, for want of a key or builder
    Add the key or builder, or don't require it.
unknown_key | A channel names a signing key that no TrustPolicy has
    Correct the id, or add the key.
unknown_builder | A channel names a builder that no TrustPolicy accepts
    Correct the id, or add the builder.
key_of_another_scheme | A channel names a key of another scheme than it takes
    Name another key or scheme.
key_revoked | Something is signed, or is to be signed, with a revoked key
    Sign with another key, or name another one as signing_key.
unknown_channel | A PlatformRelease is for a channel that no TrustPolicy rules
    Correct the channel, or add it.
digest_reused | One digest stands for two components or platforms
    Copy the right digest from the build.
min_version_above_version | signing_keys would leave no version of a key to sign with
    Write at most `version` as min_version.
release_withdrawn | A FleetPolicy wants the agent of a withdrawn release
    Name another release.
release_without_agent | A FleetPolicy wants the agent of a release that has none
    Name another release.
fleet_policies_overlap | A node belongs to two FleetPolicies
    Narrow one of the selectors.
unknown_pool | A FleetPolicy selects a pool that no node is in
    Correct the pool's name.
selects_no_node | A selector of a FleetPolicy fits no node
    A node has to fit everything that a selector says.
# commits that can't be trusted: nothing of the revision counts
commit_from_future | A commit with a date that is still to come
    Set the clock where it was made, and make it again.
commit_too_large | A commit whose message or signature is too large to be looked at
    Write less into the message.
commit_unsigned | A commit that is not signed
    Sign it: git config commit.gpgSign true, then make it again.
forge_author_unknown | A merge made in a forge by an address that no Identity has
    Add the address to an Identity in a commit before, or merge with your own key.
history_rewritten | The branch is not built on the last accepted revision
    Push it again as it was, with new commits on top.
key_expired | A commit signed with a key that has ended
    Sign it with a key in force.
key_not_yet_valid | A commit signed with a key whose time has not come
    Sign it with a key in force.
signature_bad | A signature that is not of this commit
    Make the commit again and sign it; find out who changed it after it was signed.
signature_unsupported | A signature of a kind that is not taken
    Sign once, with an SSH or OpenPGP key.
signer_ambiguous | A key or address that stands more than once, so that it is nobody's
    Leave it with the one it belongs to.
signer_disabled | A commit of somebody who is disabled
    Somebody else makes the change.
signer_unknown | A commit signed with a key that no Identity has
    Have the key added to an Identity in a commit before, then sign again.
# changes that count as not made
authorised_form_invalid | What counts instead of a refused change is not valid any more
    Commit a valid form, signed by somebody who may.
change_not_allowed | The signer lacks the permission that this change needs
    Somebody who has it makes or approves the change; or undo it.
illegal_step | A version or artifact goes where it may not from the state that counts
    Make the step that the message names, one a commit; or take the change back.
keeps_refused_change | An edit on top of a change that counts as not made
    Take that one back first, in a commit of its own; or sign for all of it with `Approves:`.
last_admin | Nobody would be left who may say who may do what, and can sign
    Let another admin in first, with a key of his own.
more_than_own_rights | Somebody gives rights that he does not hold himself
    Somebody who holds all of them makes or approves the change; or give less.
needs_human | A machine changed what is for humans
    A human makes or approves the change; or undo it.
outside_own_project | A machine changed something outside its own project
    A human makes the change, or that project's own account.
unread_change | Nobody can tell what this changes
    Mend the file, or keep one of the two documents; it is judged then.
# artifacts, told by a pass
blob_not_delivered | A blob that is to be on a node ahead did not get there
    Look at that node's quota and disk, and whether the blob is in the store.
canary_stepped_back | A canary of which too many instances failed counts as staged
    Change its Promotion: any other content tries it again, staged ends it.
no_longer_trusted | What runs has no artifact that its channel takes any more
    Go to a version whose artifact is good, or decommission it.
trust_not_asked | There are channels, and the Environment names none
    Set spec.trust.channel of the Environment.
# keys and secrets in custody, told by a pass
ssh_key_rotating | Nodes of a project do not have its newest SSH key yet
    Nothing: it goes on by itself; revoke a node that is gone.
ssh_keys_not_installed | A node could not write a user's authorized_keys
    Mend the user, the file or spec.ssh_user; the agent tries again.
ssh_keys_wait | SSH keys are neither made nor deleted while custody is away
    Nothing: it goes on by itself.
vault_drift | Something in Vault is not as declared
    Run gpuaas vault bootstrap; Vault's audit log says who changed it.
vault_foreign | Something in Vault, among what is ours, that nobody declared
    Find out whose it is; remove it with Vault's own tools.
# times
bad_time | A time that does not exist
    Write a day of the calendar, and windows with a length.
unknown_time_zone | A time zone that does not exist
    Write it as Area/City, for example Europe/Berlin, or UTC.
# told by comparison
moved_from_unknown | moved_from names an instance that the base does not have
    Name one that is there, or take moved_from out.
tombstone_missing | An instance removed without having been decommissioned
    Set desired: decommissioned first; remove the file once it is gone.
version_changed_in_place | A version that is offered is changed
    Add a new version instead.
# acceptance
invalid_workload | A workload that no node would take
    Mend the field named.
not_accepted | Waits for something that has a problem
    Mend that one: this follows by itself.
looks_renamed | An instance is gone, and a new one of its project says the very same
    For a rename, say moved_from in the new one; else delete and add in two commits.
not_read | Newer files were not looked at; what was accepted last is shown
    Nothing: the next pass of the control plane reads them.
project_not_attached | A runtime that several projects share, for a project that is not one of them
    Name the project in the tenant's attached_projects, or ask for tenant_dedicated.
removal_suspended | What looks deleted may be misplaced, or a document beside it is invalid
    Mend that document, or put the file named where it belongs; the removal follows by itself.
stored_form_unreadable | The last accepted form can't be read any more
    Mend the object: its newest valid form replaces the stored one.
"""


def _read() -> Mapping[str, Meaning]:
    """Two lines a code: the code and what it means, then what to do."""
    lines = [line for line in _TABLE.splitlines() if line and not line.startswith("#")]
    rows = zip(lines[::2], lines[1::2], strict=True)
    split = ((*first.split(" | "), second.strip()) for first, second in rows)
    return MappingProxyType({code: Meaning(what, to_do) for code, what, to_do in split})


MEANINGS = _read()


def meaning_of(code: str) -> Meaning:
    """Of a code without a row: the words it is made of."""
    words = code.replace("_", " ")
    return MEANINGS.get(code, Meaning(words[:1].upper() + words[1:], "See the message."))
