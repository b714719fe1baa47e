// Command vault-for-tests serves a real Vault core with the engines the tests use, on loopback.
//
// It prints one line of JSON when it answers: address, root token, unseal key. With -storage the
// barrier lies in a folder, so that it can be killed and started again: the second start prints no
// root token and is sealed, as a Vault is after a restart.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/hashicorp/go-hclog"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/audit"
	auditfile "github.com/hashicorp/vault/builtin/audit/file"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/builtin/logical/transit"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

type factories map[string]logical.Factory

// catalog answers Vault's question which engines are built in.
type catalog map[consts.PluginType]factories

func (c catalog) Contains(name string, kind consts.PluginType) bool {
	_, there := c[kind][name]
	return there
}

func (c catalog) Get(name string, kind consts.PluginType) (func() (interface{}, error), bool) {
	factory, there := c[kind][name]
	return func() (interface{}, error) { return factory, nil }, there
}

func (c catalog) Keys(kind consts.PluginType) []string {
	names := make([]string, 0, len(c[kind]))
	for name := range c[kind] {
		names = append(names, name)
	}
	return names
}

func (c catalog) DeprecationStatus(string, consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, true
}

// ready is what the first line of the output says.
type ready struct {
	Address   string `json:"address"`
	RootToken string `json:"root_token,omitempty"`
	UnsealKey string `json:"unseal_key,omitempty"`
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on; port 0 is any free one")
	storage := flag.String("storage", "", "folder to keep the barrier in; in memory when empty")
	certificate := flag.String("tls-cert", "", "PEM certificate chain; plain HTTP when empty")
	key := flag.String("tls-key", "", "PEM key of that certificate")
	flag.Parse()

	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr})
	core := newCore(backend(*storage, logger), logger)
	answer := initialize(core)

	listener, err := net.Listen("tcp", *listen)
	check(err)
	scheme := "http://"
	if *certificate != "" {
		scheme = "https://"
	}
	answer.Address = scheme + listener.Addr().String()
	check(json.NewEncoder(os.Stdout).Encode(answer))

	server := http.Server{Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core})}
	if *certificate != "" {
		log.Fatal(server.ServeTLS(listener, *certificate, *key))
	}
	log.Fatal(server.Serve(listener))
}

func backend(folder string, logger hclog.Logger) physical.Backend {
	if folder == "" {
		memory, err := inmem.NewInmem(nil, logger)
		check(err)
		return memory
	}
	disk, err := file.NewFileBackend(map[string]string{"path": folder}, logger)
	check(err)
	return disk
}

func newCore(storage physical.Backend, logger hclog.Logger) *vault.Core {
	secrets := factories{"kv": kv.Factory, "transit": transit.Factory, "pki": pki.Factory}
	auth := factories{"approle": approle.Factory}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:           storage,
		DisableMlock:       true,
		Logger:             logger,
		LogicalBackends:    secrets,
		CredentialBackends: auth,
		AuditBackends:      map[string]audit.Factory{"file": auditfile.Factory},
		BuiltinRegistry: catalog{
			consts.PluginTypeSecrets:    secrets,
			consts.PluginTypeCredential: auth,
		},
	})
	check(err)
	return core
}

// initialize gives an empty store one unseal key and opens it; another store stays sealed.
func initialize(core *vault.Core) ready {
	there, err := core.Initialized(context.Background())
	check(err)
	if there {
		return ready{}
	}
	made, err := core.Initialize(context.Background(), &vault.InitParams{
		BarrierConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1},
	})
	check(err)
	_, err = core.Unseal(made.SecretShares[0])
	check(err)
	return ready{RootToken: made.RootToken, UnsealKey: hex.EncodeToString(made.SecretShares[0])}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
